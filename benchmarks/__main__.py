"`python -m benchmarks [NAME…]` (or `make bench`): run the named benchmarks, or all of them; --out FILE keeps a copy of what they print."
import argparse, contextlib, importlib, io, pkgutil, sys
from pathlib import Path
import benchmarks
from benchmarks.machine import machine

NAMES = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in ('__main__', 'machine'))

class Tee(io.TextIOBase):
    "Writes to several streams at once."
    def __init__(self, *streams): self.streams = streams
    def write(self, text):
        for s in self.streams: s.write(text)
        return len(text)
    def flush(self):
        for s in self.streams: s.flush()

def main(argv=None) -> int:
    "Run benchmarks by name."
    p = argparse.ArgumentParser(prog='python -m benchmarks', description='Side-by-side measurements: ours against a peer, in the same run, as ratios.')
    p.add_argument('names', nargs='*', metavar='NAME', help=f'of: {", ".join(NAMES)}; default: all')
    p.add_argument('--out', metavar='FILE', help='also write the report here')
    args = p.parse_args(argv)
    unknown = set(args.names) - set(NAMES)
    if unknown: p.error(f'no benchmark called {", ".join(sorted(unknown))}; there are: {", ".join(NAMES)}')
    report = io.StringIO()
    with contextlib.redirect_stdout(Tee(sys.stdout, report)):
        print(f'{machine()}\n')
        for name in args.names or NAMES:
            print(f'## {name}\n', flush=True)
            importlib.import_module(f'benchmarks.{name}').main()
            print(flush=True)
    if args.out: Path(args.out).write_text(report.getvalue(), encoding='utf-8')
    return 0

if __name__ == '__main__': sys.exit(main())
