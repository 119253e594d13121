"Builds the package from settings.ini, which holds all of its metadata."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
def lines(key): return [o for o in cfg[key].splitlines() if o.strip()]

setup(name=cfg['name'], version=cfg['version'], description=cfg['description'], author=cfg['author'], license=cfg['license'],
      keywords=cfg['keywords'], long_description=(here/'README.md').read_text(encoding='utf-8'),
      long_description_content_type='text/markdown', packages=[cfg['lib_path']], python_requires=f">={cfg['min_python']}",
      install_requires=lines('requirements'), extras_require={'dev': lines('dev_requirements')},
      entry_points={'console_scripts': lines('console_scripts')})
