"What a measurement was taken on."
import os, platform
from datetime import datetime, timezone
from pathlib import Path

import torch


def cpu_model() -> str:
    "The processor's name, as far as the system tells it."
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8', errors='replace').splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    "One line: processor, cores this process may use, load, accelerator, Python, PyTorch, its threads, date (UTC)."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    load = [f'load {os.getloadavg()[0]:.1f}'] if hasattr(os, 'getloadavg') else []
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    parts = [cpu_model(), f'{cores} cores', *load, *gpu, f'Python {platform.python_version()}',
             f'PyTorch {torch.__version__} ({torch.get_num_threads()} threads)', f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC']
    return ', '.join(parts)
