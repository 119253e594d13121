"Finding ten thousand images in folders: get_files, which sorts and filters, against pathlib's rglob and os.walk."
import os, statistics, tempfile, time
from pathlib import Path
from exp.nb_08 import get_files, image_extensions

CLASSES, IMAGES = 10, 1000

def make(root: Path) -> None:
    "Empty files in the shape of an image dataset."
    for i in range(CLASSES):
        (folder := root/'train'/f'class_{i}').mkdir(parents=True)
        for j in range(IMAGES): (folder/f'{i}_{j:05}.JPEG').touch()

def by_rglob(root: Path) -> list[Path]:
    "The same files in the same order by pathlib alone."
    return sorted(f for f in root.rglob('*') if f.suffix.lower() in image_extensions and not f.name.startswith('.'))

def by_walk(root: Path) -> list[Path]:
    "The same by os.walk."
    return sorted(Path(folder)/f for folder, _, files in os.walk(root) for f in files if os.path.splitext(f)[1].lower() in image_extensions and not f.startswith('.'))

def by_walk_strings(root: Path) -> list[str]:
    "As strings, unsorted: about the least that can be done."
    return [os.path.join(folder, f) for folder, _, files in os.walk(root) for f in files if os.path.splitext(f)[1].lower() in image_extensions]

def seconds(fs: dict, root: Path, repeats: int = 15) -> dict[str, float]:
    "The median time of each, in turn, so that a busy moment hits all of them."
    times = {k: [] for k in fs}
    for _ in range(repeats):
        for k, f in fs.items():
            start = time.perf_counter()
            f(root)
            times[k].append(time.perf_counter() - start)
    return {k: statistics.median(t) for k, t in times.items()}

def main() -> None:
    "Print the times, and as ratios to ours."
    ours = lambda root: get_files(root, image_extensions, recurse=True)
    ways = {'get_files': ours, 'pathlib: rglob, filter, sort': by_rglob, 'os.walk, paths, sort': by_walk, 'os.walk, strings, unsorted': by_walk_strings}
    with tempfile.TemporaryDirectory() as folder:
        make(root := Path(folder))
        assert ours(root) == by_rglob(root) == by_walk(root)
        times = seconds(ways, root)
    print(f'{CLASSES*IMAGES:,} files in {CLASSES} folders\n\n| way | ms | ratio to get_files |\n| --- | --- | --- |')
    for k, t in times.items(): print(f'| {k} | {t*1e3:.1f} | {t/times["get_files"]:.2f} |')
