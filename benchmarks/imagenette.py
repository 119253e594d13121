"""Imagenette, trained by the command, from several seeds and in several formats: python -m benchmarks.imagenette [--seeds N...] [--formats NAME...] [options of exp.train_imagenette]

Each training is a process of its own: `python -m exp.train_imagenette` with the recipe of lesson 11, changed by the options. For each: the accuracy on all validation images after the last epoch, the images a second (training
and validation together, each image counted as often as it was seen), the minutes of all epochs, and the memory: the largest that the process ever had, or on a GPU, the most that PyTorch's tensors took of the device.
A format is float32, or one that `--amp` takes. By itself it trains the smallest network at 64 px for an epoch, in float32 and in bfloat16; any option replaces all of that, and what isn't given is then the recipe's: the lesson's five epochs are `--seeds 42 1 2 --formats bfloat16 --epochs 5`.
The real Imagenette-160 where it can be had (EXP_DATA, EXP_MIRROR), else the built-in sample.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

from benchmarks.machine import machine

QUICK = ['--arch', 'xresnet18', '--size', '64', '--epochs', '1']
CHILD = """
import json, resource, sys, torch
from exp.train_imagenette import train_main
status = train_main(sys.argv[1:])
memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
print(json.dumps(dict(memory=memory)))
sys.exit(status)
"""

def train(options, out) -> dict:
    "What the command wrote into `results.json`, and the `memory` in bytes. Its own output goes to stderr."
    p = subprocess.run([sys.executable, '-c', CHILD, *options, '--out', str(out)], stdout=subprocess.PIPE, text=True)
    *said, last = p.stdout.splitlines() or ['']
    print(*said, sep='\n', file=sys.stderr, flush=True)
    if p.returncode: raise SystemExit(f'the training with {" ".join(options)} ended with status {p.returncode}')
    return json.loads((Path(out)/'results.json').read_text(encoding='utf-8')) | json.loads(last)

def main(seeds=(42,), formats=('float32', 'bfloat16'), options=QUICK) -> None:
    "Print the table of trainings, and the mean and spread of each format's accuracies."
    print('| format | seed | accuracy | images/s | minutes | GB |\n| --- | --- | --- | --- | --- | --- |')
    accuracies = {}
    for which in formats:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                r = train([*options, '--seed', str(seed), *(['--amp', which] if which != 'float32' else [])], Path(folder)/'run')
            images = r['settings']['epochs']*(r['data']['train'] + r['data']['valid'])
            print(f'| {which} | {seed} | {r["accuracy"]:.4f} | {images/r["seconds"]:.1f} | {r["seconds"]/60:.1f} | {r["memory"]/1e9:.2f} |', flush=True)
            accuracies.setdefault(which, []).append(r['accuracy'])
    for which, a in accuracies.items():
        if len(a) > 1: print(f'\n{which}: {len(a)} seeds, mean {statistics.mean(a):.4f}, standard deviation {statistics.stdev(a):.4f}, worst {min(a):.4f}')
    s, kept = r['settings'], ('arch', 'size', 'epochs', 'bs', 'lr', 'mixup', 'smooth', 'channels_last', 'compile', 'workers')
    print(f'\n{", ".join(f"{k} {s[k]}" for k in kept)}; {r["data"]["train"]:,} training images, {r["data"]["valid"]:,} for validation; on {r["device"]}, OMP_NUM_THREADS={os.environ.get("OMP_NUM_THREADS", "not set")}')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument('--seeds', type=int, nargs='+', default=[42])
    p.add_argument('--formats', nargs='+', default=['float32', 'bfloat16'])
    args, options = p.parse_known_args()
    if clash := {'--amp', '--seed', '--out'} & {o.partition('=')[0] for o in options}: p.error(f'{", ".join(sorted(clash))} is set here by --formats, --seeds and a temporary folder')
    print(f'{machine()}\n')
    main(args.seeds, args.formats, options or QUICK)
