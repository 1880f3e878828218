"""YAML for recipes: 1e-4 is a number, dates are text, and values that YAML would silently misread are errors."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # 1e-4, which YAML 1.1 takes for text
# YAML 1.1 reads 010 as octal (8) and 1:30 in base 60 (90). It takes 09 for text, which would be converted to 9 later.
ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$")
NESTED = 50
TOO_DEEP = f"nested more than {NESTED} levels deep: a recipe needs about 3"
NODES = 100_000  # far more than a recipe has; aliases of aliases can make billions


class MisreadError(yaml.YAMLError):
    """Raised if a value in valid YAML differs from what its text looks like (010 is 8); ``problems`` has a line for
    each."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


class RecipeLoader(yaml.SafeLoader):
    """YAML loader of recipes: it reads 1e-4 as a number, and a date as text."""


class RecipeDumper(yaml.SafeDumper):
    """YAML dumper of recipes: :func:`read_yaml` reads its output back unchanged."""


RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for one in (RecipeLoader, RecipeDumper):
    one.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
RecipeDumper.add_implicit_resolver("tag:yaml.org,2002:int", ODD_NUMBER, list("-+0123456789"))  # text gets quotes


def read_yaml(text: str) -> Any:
    """Parse the YAML of a recipe into nested dicts, lists and plain values.

    Raises:
        MisreadError: a key is given twice, or a number is ambiguous, such as 010 or 1:30.
        yaml.YAMLError: the text is not YAML.
    """
    loader = RecipeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if problems := sorted({problem for one in all_nodes(node) for problem in misread(one)}):
            raise MisreadError([f"line {line}: {problem}" for line, problem in problems])
        return loader.construct_document(node)
    except RecursionError:  # in yaml's parser, before there are nodes to count
        raise MisreadError([TOO_DEEP]) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None  # such as !!int x, or 5,000 digits
    finally:
        loader.dispose()


def write_yaml(values: object) -> str:
    """Format values as YAML text; mappings keep their order."""
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False)


def all_nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield a YAML node and all nodes below it; nodes behind an alias are yielded once per use.

    Args:
        root: the YAML node.

    Raises:
        MisreadError: there are more than 100,000 nodes, because aliases multiply them, or more than 50 levels.
    """
    left = [(root, 0)]
    for _ in range(NODES):
        if not left:
            return
        node, depth = left.pop()
        if depth > NESTED:
            raise MisreadError([f"line {line_of(node)}: {TOO_DEEP}"])
        yield node
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            left += [(one, depth + 1) for one in (child if isinstance(node, yaml.MappingNode) else [child])]
    raise MisreadError([f"aliases (*) repeat values, which makes more than {NODES:,} of them: write the values out"])


def misread(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Find values directly within a YAML node that YAML reads differently than their text looks, such as 010 as 8.

    Yields:
        Line number (from 1) and problem of each such value.
    """
    if isinstance(node, yaml.ScalarNode) and node.style is None and ODD_NUMBER.match(node.value):
        yield line_of(node), f"{node.value} is ambiguous: write a decimal number, or put quotes around text"
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in lines:
                yield line_of(key), f"{key.value} is given twice, first in line {lines[key.tag, key.value]}: remove one"
            lines.setdefault((key.tag, key.value), line_of(key))


def line_of(node: yaml.Node) -> int:
    """Return the number of the line in which a YAML node begins, from 1."""
    return int(node.start_mark.line) + 1
