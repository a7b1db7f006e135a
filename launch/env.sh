# What the libraries below a run want to be told, sourced by the scripts in launch/. What is already set is kept.

# Ranks share the processors of a node; more threads each would only wait for one another.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Kernels start in the order they were queued in: megatron-core overlaps tensor parallelism's communication that way.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Rows differ in their numbers of routed tokens; segments that grow keep that from fragmenting GPU memory.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# A rank that dies of a signal (segmentation fault, abort) says in which Python line.
export PYTHONFAULTHANDLER=${PYTHONFAULTHANDLER:-1}
# Output is not a terminal: lines are to reach the log when they are said, not kilobytes later.
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}
