"""`galley models`: the families of the registry, by a search word."""

from galley.cli.main import main
from galley.models.catalogue import ENTRIES, catalogue
from galley.models.registry import ARCHITECTURES


def test_every_architecture_has_a_title_and_a_checkpoint():
    assert set(ENTRIES) == set(ARCHITECTURES)
    assert {row.architecture for row in catalogue()} == set(ARCHITECTURES)


def test_a_word_is_looked_for_in_all_columns(capsys):
    assert main(["models", "gemma"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["Gemma", "dense"], ["Gemma", "2"]]
    assert main(["models", "command-r"]) == 0  # a name of GGUF
    assert "CohereForCausalLM" in capsys.readouterr().out
    assert main(["models", "no such family"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_all_without_a_word(capsys):
    assert main(["models"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ARCHITECTURES)
