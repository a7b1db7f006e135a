# Sourced by the roads of several commands: each step is done once. Wants $run, a folder.

step() { # step NAME TITLE COMMAND...: run the command unless NAME is done
  local name=$1 title=$2
  shift 2
  if [ -e "$run/done/$name" ]; then
    echo "── $title: done before"
    return
  fi
  echo "── $title"
  echo "   $*"
  local start=$SECONDS
  "$@"
  touch "$run/done/$name"
  echo "   ($((SECONDS - start)) s)"
}
