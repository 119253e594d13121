"Exporting with nothing changed, and importing the last lesson's module, against what they can't do without."
import statistics, subprocess, sys, time
from exp.nb_00 import lesson_paths, own_module, project_root

def seconds(*commands: list[str], repeats: int = 7) -> list[float]:
    "The median time of each command, run in turn, so that a busy moment hits all of them."
    times = [[] for _ in commands]
    for _ in range(repeats):
        for t, c in zip(times, commands):
            start = time.perf_counter()
            subprocess.run(c, check=True, stdout=subprocess.DEVNULL)
            t.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]

def main() -> None:
    "Print both comparisons."
    root = project_root()
    python = lambda code: [sys.executable, '-c', code]
    modules = [own_module(p) for p in lesson_paths(root/'nbs')]
    last = [m for m in modules if (root/'exp'/f'{m}.py').exists()][-1]
    export, bare = seconds([sys.executable, '-m', 'exp', 'export'], python('import exp.cli, nbdev.maker'))
    ours, peer = seconds(python(f'import exp.{last}'), python('import torch, matplotlib.pyplot, pandas'))
    print('| what | seconds | peer | seconds | ratio | goal |\n| --- | --- | --- | --- | --- | --- |')
    print(f'| `exp export`, {len(modules)} lessons, nothing changed | {export:.2f} | python with its imports | {bare:.2f} | {export/bare:.2f} | under 1 s |')
    print(f'| `import exp.{last}` | {ours:.2f} | torch, matplotlib.pyplot, pandas | {peer:.2f} | {ours/peer:.2f} | at most 1.3 |')
