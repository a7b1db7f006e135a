"""Replies of models that write code problems, made by hand."""

STATEMENT = (
    "Write a function `largest_gap(numbers)` that returns the largest difference between two "
    "neighbours of the sorted list, and 0 for a list of fewer than two numbers."
)
SOLUTION = """def largest_gap(numbers):
    # Neighbours after sorting.
    ordered = sorted(numbers)
    best = 0
    for left, right in zip(ordered, ordered[1:]):
        if right - left > best:
            best = right - left
    return best"""
ASSERTS = [
    "assert largest_gap([1, 9, 4]) == 5",
    "assert largest_gap([]) == 0",
    "assert largest_gap([7]) == 0",
    "assert largest_gap([-3, 3, 4]) == 6",
]
TESTS = "\n".join(ASSERTS)


def reply(
    statement: str = STATEMENT, solution: str = SOLUTION, tests: str = TESTS, kind: str = "python"
) -> str:
    """In the form that was asked for."""
    return (
        f"## Problem\n{statement}\n\n## Solution\n```python\n{solution}\n```\n\n"
        f"## Tests\n```{kind}\n{tests}\n```\n"
    )


BOLD = f"""<think>
Something about lists. ```python
def wrong(): return 1
```
</think>
Sure! Here is a new problem for you.

**Problem Statement:**
{STATEMENT}

---

**Solution:**
Here is the code:

```
{SOLUTION}
```
It sorts first.

**Test Cases:**

```Python
{TESTS}
```

**Explanation:** the tests cover the empty list."""
NUMBERED = f"""1. Problem: {STATEMENT}

2. Solution (in Python)
~~~python3
{SOLUTION}

if __name__ == "__main__":
    print(largest_gap([1, 2]))
~~~

3. Unit tests
~~~py
from solution import largest_gap

{SOLUTION}

{TESTS}
~~~"""
TAGS = f"""<problem>
{STATEMENT}
</problem>
<solution>
```python
{SOLUTION}
print(largest_gap([1, 2]))
```
</solution>
<tests>
```python
{TESTS}
```
</tests>"""
ONE_BLOCK = f"""Here is your problem:

{STATEMENT}

```python
{SOLUTION}

{TESTS}
```
I hope it helps."""
NO_FENCES = f"""### Problem
{STATEMENT}
### Solution
{SOLUTION}
### Tests
{TESTS}"""
WRAPPED = f"""```markdown
{reply()}```"""
TWICE = f"""{reply()}
## Problem 2
{STATEMENT.replace("largest", "smallest")}

## Solution
```python
{SOLUTION.replace("largest", "smallest")}
```

## Tests
```python
{TESTS.replace("largest", "smallest")}
```"""
UNCLOSED = reply().rstrip().removesuffix("```")
CHINESE = f"""## 题目
{STATEMENT}

## 解答
```python
{SOLUTION}
```

## 测试用例
```python
{TESTS}
```"""
GOOD = {
    "as asked": reply(),
    "bold": BOLD,
    "numbered": NUMBERED,
    "tags": TAGS,
    "one block": ONE_BLOCK,
    "no fences": NO_FENCES,
    "wrapped": WRAPPED,
    "twice": TWICE,
    "unclosed": UNCLOSED,
    "Chinese": CHINESE,
    "statement in a fence": reply().replace(STATEMENT, f"```text\n{STATEMENT}\n```"),
}
