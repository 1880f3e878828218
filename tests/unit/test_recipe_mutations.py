"""Mutated recipes end in a check that passes or in one line per problem; `recipe_mutations.py` checks thousands."""

from itertools import islice
from pathlib import Path

import pytest
from bad_folder import make_folder
from recipe_mutations import check, mutations


@pytest.mark.parametrize("seed", range(4))
def test_mutated_recipes(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    recipe = Path("mutated.yaml")
    for text in islice(mutations(Path("recipe.yaml"), seed), 15):
        recipe.write_text(text)
        problem = check(recipe)
        assert problem is None, f"{text}\n{problem}"
