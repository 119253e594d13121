"What all tests share: the clone's folders, and notebooks made on the spot."
import json, os
from pathlib import Path
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault('EXP_DEVICE', 'cpu')   # so that tests say the same on every machine; another device can be asked for

WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
SHARE = max(1, (os.cpu_count() or 1)//WORKERS) if WORKERS > 1 else None   # under pytest-xdist, the cores for each of its processes
if SHARE: os.environ.setdefault('OMP_NUM_THREADS', str(SHARE))            # before torch is imported: if each takes all of them, they wait for one another

# how long an example takes is no business of the tests: a machine may be slow, or busy
settings.register_profile('any machine', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('any machine')

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def root() -> Path: return ROOT

def make_cell(source, kind='code', id=None):
    return dict(cell_type=kind, metadata={}, source=source, **({'id': id} if id else {}), **(dict(outputs=[], execution_count=None) if kind == 'code' else {}))

@pytest.fixture
def project(tmp_path):
    "A small project, with `write(name, *sources)` to add a notebook; strings are code cells, and `# Title` makes a heading."
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    for d in ('nbs', 'exp'): (tmp_path/d).mkdir()
    class Project:
        root, nbs, lib = tmp_path, tmp_path/'nbs', tmp_path/'exp'
        def write(self, name, *sources):
            cells = [make_cell(s, 'markdown' if isinstance(s, str) and s.startswith('# ') and '\n' not in s else 'code', f'c{i}') for i, s in enumerate(sources)]
            path = self.nbs/name
            path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=cells)), encoding='utf-8')
            return path
    return Project()

@pytest.fixture
def threads_share():
    "Under pytest-xdist, the cores that each worker's kernels may use."
    return SHARE
