"""The notebook: what is stored in it is clean, and it runs.

To store the outputs of a new run: ``jupyter execute --inplace docs/first_model.ipynb``.
"""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from command_line import ENVIRONMENT, ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = ROOT / 'docs/first_model.ipynb'
LARGEST = 600_000


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get('outputs', [])]


def printed(notebook: NotebookNode) -> str:
    texts = [output.get('text') or output.data['text/plain'] for output in outputs(notebook)]
    return '\n'.join(texts)


@pytest.fixture(scope='module')
def stored() -> NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_stored_outputs_are_of_one_run_from_top_to_bottom(stored):
    cells = [cell for cell in stored.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    drawing = [cell for cell in cells if re.search(r'^(plt\.show|compare)\(', cell.source, re.M)]
    assert drawing
    for cell in drawing:
        assert any('image/jpeg' in output.get('data', {}) for output in cell.outputs), cell.source
    assert stored.metadata.kernelspec.name == 'python3'


def test_stored_outputs_have_no_warnings_and_no_errors(stored):
    assert all(output.output_type != 'error' for output in outputs(stored))
    streams = [output for output in outputs(stored) if output.output_type == 'stream']
    assert [output.text for output in streams if output.name == 'stderr'] == []


def test_notebook_says_nothing_of_the_machine_that_it_ran_on(stored):
    cells = '\n'.join(cell.source for cell in stored.cells)
    place = re.search(r'(?<![\w.])/(work|tmp|root|home|Users|mnt|opt)/.*', cells + printed(stored))
    assert place is None, place


def test_notebook_is_small_enough_for_a_repository():
    assert NOTEBOOK.stat().st_size < LARGEST


def test_links_of_the_notebook_lead_somewhere(stored):
    texts = [cell.source for cell in stored.cells if cell.cell_type == 'markdown']
    links = re.findall(r'\]\(([^)\s#]+)', '\n'.join(texts))
    assert links
    for link in links:
        assert '://' in link or (NOTEBOOK.parent / link).exists(), link


@pytest.mark.parametrize('command', [['check'], ['format', '--check']])
def test_code_of_the_notebook_is_kept_like_the_rest(command):
    ruff = [sys.executable, '-m', 'ruff', *command, '--no-cache', str(NOTEBOOK)]
    done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_notebook_runs_and_its_models_learn(tmp_path):
    docs = tmp_path / 'docs'
    docs.mkdir()
    notebook = nbformat.read(shutil.copy(NOTEBOOK, docs), as_version=4)
    place = {'metadata': {'path': str(docs)}}
    NotebookClient(notebook, timeout=1800, kernel_name='python3', resources=place).execute(
        env=ENVIRONMENT  # one thread
    )
    text = printed(notebook)
    (found,) = re.findall(r'^box AP .*box AP50 ([\d.]+)', text, re.M)
    assert float(found) > 0.3
    tuned, scratch = re.findall(r'^from .*: box AP50 ([\d.]+)', text, re.M)
    assert float(tuned) > float(scratch)
