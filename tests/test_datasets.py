"Lesson 00a: archives that lie, caches that break, networks that fail, and the built-in samples."
import errno, gzip, hashlib, io, json, os, re, shutil, signal, struct, subprocess, sys, tarfile, threading, zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

import exp.nb_00a as d
from exp.nb_00a import DATASETS, DataError, DataFile, DataInfo, NotAvailable, URLs, find_data, read_idx, untar_data, unpack, write_idx

ROOT = Path(__file__).parent.parent
MADE = 'mnist', 'imagenette2-160', 'oxford-iiit-pet', 'imdb', 'wikitext-2'   # imagewoof's maker is imagenette's

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "Each test has a cache of its own, and no settings of the user's."
    for name in ('EXP_DATA', 'EXP_DEVICE', 'IN_TEST', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'http_proxy', 'https_proxy', 'all_proxy'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('EXP_MIRROR', '')
    monkeypatch.setenv('EXP_HOME', str(tmp_path/'home'))
    return tmp_path/'home'

REAL_MIRROR = os.environ.get('EXP_MIRROR', '')

def tree(folder, skip=('.lock',)):
    "Relative path -> bytes of every file below `folder`; lock files stay behind by design."
    folder = Path(folder)
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file() and not f.name.endswith(skip)}

def tar_of(path, *members, mode='w:gz'):
    "A tar at `path`; a member is (name, text) or (name, type, linkname)."
    with tarfile.open(path, mode) as tar:
        for name, what, *link in members:
            m = tarfile.TarInfo(name)
            if link:
                m.type, m.linkname = what, link[0]
                tar.addfile(m)
            else:
                m.size = len(what.encode())
                tar.addfile(m, io.BytesIO(what.encode()))
    return path

def zip_of(path, *members):
    "A zip at `path`; a member is (name, text) or (name, text, Unix mode)."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, text, *unix in members:
            m = zipfile.ZipInfo(name)
            m.compress_type = zipfile.ZIP_DEFLATED
            if unix: m.external_attr = unix[0] << 16
            z.writestr(m, text)
    return path

@pytest.fixture
def good(tmp_path): return tar_of(tmp_path/'good.tgz', ('good/a/1.txt', 'one'), ('good/b/2.txt', 'two'))

# --- unpacking ---------------------------------------------------------------------------------------------------------------

CLIMBERS = '../out.txt', 'a/../../out.txt', '/out.txt', '//out.txt', r'..\out.txt', r'a\..\..\out.txt', 'C:/out.txt', r'C:\out.txt', '..'

@pytest.mark.parametrize('kind', ['tgz', 'zip'])
@pytest.mark.parametrize('name', CLIMBERS)
def test_climbing_paths_are_refused(tmp_path, kind, name):
    archive = (tar_of if kind == 'tgz' else zip_of)(tmp_path/f'x.{kind}', ('fine.txt', 'fine'), (name, 'out'))
    before = set(tmp_path.iterdir())
    with pytest.raises(DataError, match=f'x.{kind}'): unpack(archive, tmp_path/'into')
    assert set(tmp_path.iterdir()) - before <= {tmp_path/'into'} and not Path('/out.txt').exists()

SYM, LNK = tarfile.SYMTYPE, tarfile.LNKTYPE

@pytest.mark.parametrize('members', [
    [('l', SYM, '..')], [('l', SYM, '/etc')], [('a/l', SYM, '../../x')], [('l', SYM, r'..\x')], [('l', LNK, '../x')], [('l', LNK, '/etc/passwd')],
    [('a/f', 'x'), ('l', SYM, 'a'), ('l/g', 'through')], [('a/f', 'x'), ('l', SYM, 'a'), ('L/g', 'through, where case does not matter')],
    [('a/f', 'x'), ('l', SYM, 'a/f'), ('l', 'over')], [('a/f', 'x'), ('l', SYM, 'a/f'), ('m', LNK, 'l')]])
def test_links_that_lead_out_or_are_written_through_are_refused(tmp_path, members):
    archive = tar_of(tmp_path/'x.tar', *members, mode='w')
    with pytest.raises(DataError, match='x.tar'): unpack(archive, tmp_path/'deep'/'into')
    assert [o.name for o in tmp_path.iterdir() if o.name != 'x.tar'] == ['deep']

@pytest.mark.skipif(os.name == 'nt', reason='symbolic links need a right on Windows')
def test_a_link_that_stays_inside_is_kept(tmp_path):
    out = unpack(tar_of(tmp_path/'x.tgz', ('v1/f.txt', 'x'), ('latest', SYM, 'v1')), tmp_path/'into')
    assert (out/'latest'/'f.txt').read_text() == 'x'

@pytest.mark.parametrize('kind', [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_in_a_tar_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match='device'): unpack(tar_of(tmp_path/'x.tgz', ('dev', kind, '')), tmp_path/'into')

@pytest.mark.parametrize('mode', [0o120777, 0o020666, 0o060666, 0o010666, 0o140666])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, mode):
    with pytest.raises(DataError, match='link or another special'): unpack(zip_of(tmp_path/'x.zip', ('l', '/etc/passwd', mode)), tmp_path/'into')

@given(st.lists(st.text(alphabet='./\\abC:', min_size=1, max_size=8), min_size=1, max_size=4), st.sampled_from(['tgz', 'zip']))
def test_whatever_the_names_nothing_is_written_outside(tmp_path_factory, names, kind):
    room = tmp_path_factory.mktemp('names')
    archive = (tar_of if kind == 'tgz' else zip_of)(room/f'x.{kind}', *((n, 'x') for n in dict.fromkeys(names)))
    try: unpack(archive, room/'deep'/'into')
    except DataError: pass
    assert {o for o in room.rglob('*') if o.is_file() and room/'deep'/'into' not in o.parents} == {archive}
    shutil.rmtree(room)

@pytest.mark.parametrize('share', [0, .02, .3, .6, .9, .999])
@pytest.mark.parametrize('make', [partial(tar_of), partial(tar_of, mode='w'), partial(tar_of, mode='w:xz'), partial(tar_of, mode='w:bz2'), zip_of], ids=['gz', 'tar', 'xz', 'bz2', 'zip'])
def test_a_cut_off_archive_is_an_error_that_names_it(tmp_path, home, make, share):
    text = hashlib.sha512(b'x').hexdigest()*40 + ''.join(chr(97 + i*i % 26) for i in range(3000))
    whole = make(tmp_path/('cut.zip' if make is zip_of else 'cut.tar'), *((f'd/{i}.txt', f'{i}{text}') for i in range(5)))
    data = whole.read_bytes()
    whole.write_bytes(data[:int(len(data.rstrip(b'\0'))*share)])                 # a plain tar ends in empty blocks, of which some may go
    with pytest.raises(DataError, match=r'cut\.(zip|tar)'): untar_data(whole, mode='full')
    assert not tree(home)

def test_a_tar_cut_off_between_two_members_is_an_error(tmp_path):
    whole = tar_of(tmp_path/'x.tar', ('a', 'x'*512), ('b', 'y'*512), mode='w')
    whole.write_bytes(whole.read_bytes()[:1024])
    with pytest.raises(DataError, match='end is missing'): unpack(whole, tmp_path/'into')

@pytest.mark.parametrize('name', ['x.tgz', 'x.zip', 'x.tar'])
def test_a_page_in_place_of_an_archive_is_an_error(tmp_path, name):
    (tmp_path/name).write_text('<html>Please log in to the network</html>'*50)
    with pytest.raises(DataError, match='broken'): untar_data(tmp_path/name, mode='full')

@pytest.mark.parametrize('offset', [-6, -2])
def test_a_gzip_with_a_wrong_checksum_or_length_is_an_error(tmp_path, good, offset):
    data = bytearray(good.read_bytes())
    data[offset] ^= 1
    good.write_bytes(data)
    with pytest.raises(DataError, match='good.tgz'): unpack(good, tmp_path/'into')

def test_a_zip_with_a_changed_byte_or_a_password_is_an_error(tmp_path):
    whole = zip_of(tmp_path/'x.zip', ('a.txt', ''.join(chr(97 + i*i % 26) for i in range(500)))).read_bytes()
    changed, locked = bytearray(whole), bytearray(whole)
    changed[60] ^= 255
    for sign, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)): locked[whole.index(sign) + at] |= 1
    for data in (changed, locked):
        (tmp_path/'x.zip').write_bytes(data)
        with pytest.raises(DataError, match='x.zip'): unpack(tmp_path/'x.zip', tmp_path/'into')

# --- all or nothing ----------------------------------------------------------------------------------------------------------

def failing_archives(tmp_path):
    yield 'broken', tar_of(tmp_path/'broken.tgz', ('a', 'x'*9999)).write_bytes(b'\x1f\x8b\x08 and so on') and tmp_path/'broken.tgz', None
    yield 'climbing', tar_of(tmp_path/'climbing.tgz', ('good/fine.txt', 'x'), ('../../../escaped', 'x')), None
    yield 'wrong hash', tar_of(tmp_path/'hash.tgz', ('good/fine.txt', 'x')), 'sha256:' + '0'*64

def test_a_failed_untar_leaves_the_cache_as_it_was(tmp_path, home, good):
    untar_data(good, mode='full')
    before, folders = tree(home), {o for o in home.rglob('*') if o.is_dir()}
    for why, archive, known in failing_archives(tmp_path):
        with pytest.raises(DataError, match=archive.name): untar_data(archive, mode='full', known_hash=known)
        assert tree(home) == before, why
        assert not [o for o in home.rglob('*') if o.name.endswith('.tmp')], why
    assert folders <= set(home.rglob('*'))

def test_force_makes_anew_and_keeps_the_old_one_when_that_fails(monkeypatch, good):
    path = untar_data(good, mode='full')
    (path/'extra').write_text('mine')
    untar_data(good, mode='full')
    assert (path/'extra').exists()
    monkeypatch.setattr(d, 'unpack', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): untar_data(good, mode='full', force=True)
    assert (path/'extra').exists() and (path/'a'/'1.txt').exists()
    monkeypatch.undo()
    monkeypatch.setenv('EXP_HOME', str(path.parents[3]))
    untar_data(good, mode='full', force=True)
    assert not (path/'extra').exists() and (path/'a'/'1.txt').read_text() == 'one'

def test_a_rename_that_fails_puts_the_old_folder_back(monkeypatch, good):
    path, rename = untar_data(good, mode='full'), os.rename
    def refuse(src, dst):
        if Path(dst) == path and Path(src).name == path.name: raise OSError(errno.EACCES, 'a virus scanner holds it')
        rename(src, dst)
    monkeypatch.setattr(os, 'rename', refuse)
    with pytest.raises(DataError, match='virus scanner'): untar_data(good, mode='full', force=True)
    assert (path/'a'/'1.txt').read_text() == 'one' and d.read_marker(path)

@pytest.mark.parametrize('after', ['old', 'new'])
def test_ctrl_c_between_the_renames_loses_neither_folder(monkeypatch, good, after):
    path, rename = untar_data(good, mode='full'), os.rename
    def interrupted(src, dst):
        rename(src, dst)
        if Path(dst).name == 'old' if after == 'old' else Path(dst) == path and Path(src).parent.name.endswith('.tmp'):
            monkeypatch.setattr(os, 'rename', rename)
            raise KeyboardInterrupt
    monkeypatch.setattr(os, 'rename', interrupted)
    with pytest.raises(KeyboardInterrupt): untar_data(good, mode='full', force=True)
    assert (path/'a'/'1.txt').read_text() == 'one' and d.read_marker(path) and not list(path.parent.glob('.*.tmp'))

def test_another_folders_room_is_not_swept_out(tmp_path):
    with d.new_folder(tmp_path/'v1.5', dict(source='test')) as longer:
        (longer/'1.txt').write_text('x')
        with d.new_folder(tmp_path/'v1', dict(source='test')): pass
        assert (longer/'1.txt').exists()
    assert (tmp_path/'v1.5'/'1.txt').exists()

@pytest.mark.parametrize('crash', [KeyboardInterrupt, OSError(errno.ENOSPC, 'No space left on device')])
@pytest.mark.parametrize('where', ['tar', 'zip', 'copy', 'sample'])
def test_ctrl_c_and_a_full_disk_leave_nothing(tmp_path, home, monkeypatch, good, where, crash):
    def boom(*a, **kw): raise crash
    if where == 'tar': monkeypatch.setattr(tarfile, 'copyfileobj', boom)
    if where == 'zip': monkeypatch.setattr(shutil, 'copyfileobj', boom)
    if where == 'copy': monkeypatch.setattr(shutil, 'copyfile', boom)
    monkeypatch.setattr('exp.samples.make_mnist', boom)
    (tmp_path/'plain.txt').write_text('x')
    what = dict(tar=good, zip=zip_of(tmp_path/'z.zip', ('a.txt', 'x')), copy=tmp_path/'plain.txt', sample='mnist')[where]
    with pytest.raises(KeyboardInterrupt if crash is KeyboardInterrupt else DataError, match=None if crash is KeyboardInterrupt else 'No space left') as caught:
        untar_data(what, mode='sample' if where == 'sample' else 'full')
    assert not tree(home) and not [o for o in home.rglob('*') if o.name.endswith('.tmp')]
    if crash is not KeyboardInterrupt: assert Path(what).name in str(caught.value)

@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='this system has no limit on the size of files')
def test_a_disk_that_really_takes_no_more(tmp_path, home):
    archive = tar_of(tmp_path/'big.tgz', ('big/1.txt', 'x'*100_000))
    code = ('import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));'
            f'from exp.nb_00a import *\nwith raises(DataError, match="big.tgz"): untar_data({str(archive)!r}, mode="full")')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
    assert not tree(home)

def test_a_folder_without_its_marker_is_not_used_and_not_lost(home, good, capsys):
    path = d.data_folder(find_data(good))
    path.mkdir(parents=True)
    (path/'by_hand.txt').write_text('mine')
    assert untar_data(good, mode='full') == path and not (path/'by_hand.txt').exists()
    assert (path.with_name('good.unmarked-1')/'by_hand.txt').read_text() == 'mine' and 'good.unmarked-1' in capsys.readouterr().out

@pytest.mark.parametrize('text', ['', '{"name": "go', '[]', '{}', '\x00\xff'])
def test_a_broken_marker_counts_as_none(good, text):
    path = untar_data(good, mode='full')
    (path/'.exp.json').write_text(text, encoding='latin-1')
    (path/'a'/'1.txt').unlink()
    assert d.read_marker(path) is None and (untar_data(good, mode='full')/'a'/'1.txt').exists()

def test_what_a_killed_process_left_is_swept_out(tmp_path, home, good):
    dest = d.data_folder(find_data(good))
    code = f'''if 1:
        from exp.nb_00a import *
        def fill(folder):
            (folder/'half.txt').write_text('x')
            print('half-way', flush=True)
            time.sleep(60)
        make_once(Path({str(dest)!r}), dict(source='lesson'), fill)'''
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == 'half-way\n'
        p.kill()
    assert list(home.rglob('half.txt')) and not dest.exists()
    untar_data(good, mode='full')
    assert not list(home.rglob('half.txt')) and (dest/'a'/'1.txt').exists()

def test_processes_that_ask_at_once_make_it_once(tmp_path, home):
    (tmp_path/'slow_maker.py').write_text(f'''if 1:
        import os, time
        def make(folder):
            with open({str(tmp_path/'log')!r}, 'a') as f: f.write(f'{{os.getpid()}} ')
            (folder/'1.txt').write_text('x'); time.sleep(1.5); (folder/'2.txt').write_text('y')''')
    code = "from exp.nb_00a import *; print(sorted(o.name for o in untar_data(DataInfo('slow', '', (), sample='slow_maker:make'), mode='sample').iterdir()))"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])}
    asking = [subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [p.communicate()[0] for p in asking]
    assert [p.returncode for p in asking] == [0]*4 and all(o.endswith("['.exp.json', '1.txt', '2.txt']\n") for o in said)
    assert len((tmp_path/'log').read_text().split()) == 1

# --- a cache that can't be written to ----------------------------------------------------------------------------------------

def test_a_full_cache_is_used_without_a_lock_or_a_write(monkeypatch, good):
    path = untar_data(good, mode='full')
    def no(*a, **kw): raise PermissionError(errno.EROFS, 'Read-only file system')
    for name in ('os.mkdir', 'os.rename', 'filelock.FileLock.acquire', 'tempfile.mkdtemp', 'pathlib.Path.write_text'): monkeypatch.setattr(name, no)
    assert untar_data(good, mode='full') == path

def test_a_cache_that_cannot_be_written_to_is_named(monkeypatch, home, good):
    def no(*a, **kw): raise PermissionError(errno.EROFS, 'Read-only file system')
    monkeypatch.setattr('filelock.FileLock.acquire', no)
    with pytest.raises(NotAvailable, match='Read-only file system.*EXP_HOME') as caught: untar_data(good, mode='full')
    assert str(home) in str(caught.value)

@pytest.mark.parametrize('mode', ['full', 'sample', 'auto'])
def test_a_home_below_a_file_is_named(tmp_path, monkeypatch, mode):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('EXP_HOME', str(tmp_path/'file'/'home'))
    with pytest.raises(DataError, match='EXP_HOME'): untar_data('mnist', mode=mode)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_folder(home, good, tmp_path):
    path = untar_data(good, mode='full')
    other = tar_of(path.parents[3].parent/'other.tgz', ('x.txt', 'x'))
    folders = [home, *(o for o in home.rglob('*') if o.is_dir())]
    for o in folders: o.chmod(0o555)
    try:
        assert untar_data(good, mode='full') == path
        with pytest.raises(NotAvailable, match='EXP_HOME'): untar_data(other, mode='full')
    finally:
        for o in folders: o.chmod(0o755)

# --- mirrors -----------------------------------------------------------------------------------------------------------------

def test_a_mirror_is_read_verified_and_never_written_to(tmp_path, monkeypatch, good, capsys):
    for name in ('first', 'second'): (tmp_path/name).mkdir()
    archive = shutil.copy(good, tmp_path/'second'/'imdb.tgz')
    sums = tmp_path/'second'/'SHA256SUMS'
    monkeypatch.setenv('EXP_MIRROR', os.pathsep.join([str(tmp_path/'missing'), str(tmp_path/'first'), str(tmp_path/'second')]))
    sums.write_text(f'{"0"*64}  imdb.tgz\n')
    before = tree(tmp_path/'second')
    with pytest.raises(DataError, match='imdb.tgz is not the file it should be'): untar_data(URLs.IMDB, mode='auto')
    assert not d.data_folder(find_data('imdb')).exists()
    sums.write_text(f'{"1"*64}  other.tgz\n{d.file_hash(archive)} *imdb.tgz\n')
    path = untar_data(URLs.IMDB, mode='auto')
    assert (path/'a'/'1.txt').read_text() == 'one' and path.name == 'imdb' and not d.is_sample(path/'a')
    assert tree(tmp_path/'second').keys() == before.keys() and capsys.readouterr().out == 'imdb: the real data, from a mirror\n'

@pytest.mark.parametrize('lines', ['{0}  ./x.tgz', '{0}  /mnt/mirror/x.tgz', '\ufeff{0} *x.tgz', '{1}  old/x.tgz\n{0}  x.tgz', '{0}  x.tgz\r\n{1}  y.tgz'])
def test_a_listed_file_is_found_however_it_is_named(tmp_path, lines):
    (tmp_path/'SHA256SUMS').write_bytes(lines.format('a'*64, 'b'*64).encode())
    assert d._listed_hash(tmp_path/'x.tgz') == 'a'*64

def test_sums_that_cannot_be_read_are_an_error_that_names_them(tmp_path, monkeypatch, good):
    shutil.copy(good, tmp_path/'imdb.tgz')
    (tmp_path/'SHA256SUMS').write_text(f'{d.file_hash(good)}  imdb.tgz\n', encoding='utf-16')
    monkeypatch.setenv('EXP_MIRROR', str(tmp_path))
    with pytest.raises(DataError, match='SHA256SUMS is not UTF-8 text'): untar_data(URLs.IMDB, mode='auto')

def test_all_files_of_a_dataset_must_be_in_the_mirrors(tmp_path, monkeypatch):
    for i, f in enumerate(find_data('mnist').files):
        (tmp_path/f'm{i % 2}').mkdir(exist_ok=True)
        assert d.mirror_files(find_data('mnist')) == []
        (tmp_path/f'm{i % 2}'/f.name).write_bytes(b'')
        monkeypatch.setenv('EXP_MIRROR', f'{tmp_path/"m0"}{os.pathsep}{tmp_path/"m1"}')
    assert len(d.mirror_files(find_data('mnist'))) == 4

def test_a_cut_off_gz_in_a_mirror_is_an_error_and_no_sample(tmp_path, monkeypatch, home):
    for f in find_data('mnist').files: (tmp_path/f.name).write_bytes(gzip.compress(b'x'*1000)[:-5])
    monkeypatch.setenv('EXP_MIRROR', str(tmp_path))
    with pytest.raises(DataError, match='train-images-idx3-ubyte.gz is broken or cut off'): untar_data(URLs.MNIST)
    assert not tree(home)

# --- public addresses --------------------------------------------------------------------------------------------------------

class _Served(SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        self.server.asked.append(self.path)
        if 'short' not in self.path: return super().do_GET()
        self.send_response(200)                                # promises more than it gives
        self.send_header('Content-Length', '100000')
        self.end_headers()
        self.wfile.write(b'x'*5000)

@pytest.fixture
def server(tmp_path):
    "A public address on this machine: `server.at('name')`; `server.asked` lists what was asked for."
    (tmp_path/'served').mkdir()
    s = ThreadingHTTPServer(('127.0.0.1', 0), partial(_Served, directory=str(tmp_path/'served')))
    s.folder, s.asked, s.at = tmp_path/'served', [], lambda name: f'http://127.0.0.1:{s.server_port}/{name}'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

def closed_port():
    "An address on this machine where nobody listens."
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{s.getsockname()[1]}/x.tgz'

def row(name, *urls, hash=None, sample=''): return DataInfo(name, urls[0], (DataFile(urls[0].rpartition('/')[2], urls, hash),), sample=sample)

def test_a_users_address_is_downloaded_once(server, good, home, capsys):
    shutil.copy(good, server.folder/'flowers.tar.gz')
    address = server.at('flowers.tar.gz')
    path = untar_data(address)
    assert path == untar_data(address) and path.name == 'flowers' and (path/'a'/'1.txt').read_text() == 'one' and server.asked == ['/flowers.tar.gz']
    assert not list(home.rglob('*.gz')) and d.read_marker(path) == dict(
        name='flowers', url=address, licence='see its publisher', source='download', hashes=[f'sha256:{d.file_hash(good)}'])
    assert capsys.readouterr().out.endswith('flowers: the real data, from its public address\n'*2)

@pytest.mark.parametrize('algorithm', ['sha256', 'md5'])
def test_the_published_hash_is_checked(server, good, home, algorithm):
    shutil.copy(good, server.folder/'x.tgz')
    right = f'{algorithm}:{d.file_hash(good, algorithm)}'
    with pytest.raises(DataError, match='not the file it should be.*127.0.0.1') as caught: untar_data(row('x', server.at('x.tgz'), hash=right[:-1] + '?'), mode='full')
    assert not isinstance(caught.value, NotAvailable) and not tree(home)
    assert (untar_data(row('x', server.at('x.tgz'), hash=right), mode='full')/'a').is_dir()

@pytest.mark.parametrize('algorithm', ['sha256', 'md5'])
def test_a_known_hash_is_asked_of_the_cache_too(good, algorithm):
    right, wrong = f'{algorithm}:{d.file_hash(good, algorithm)}', f'{algorithm}:{"0"*32}'
    path = untar_data(good, mode='full', known_hash=right)
    before = tree(path)
    assert untar_data(good, mode='full') == untar_data(good, mode='full', known_hash=right.upper()) == path
    with pytest.raises(DataError, match=f'good was made from a file whose hash is {right}, not {wrong}: force=True'):
        untar_data(good, mode='full', known_hash=wrong)
    with pytest.raises(DataError, match='not the file it should be'): untar_data(good, mode='full', known_hash=wrong, force=True)
    assert tree(path) == before

def test_a_folder_of_unknown_origin_does_not_pass_for_a_known_hash(good):
    path = d.data_folder(find_data(good))
    d.make_once(path, dict(source='test'), lambda folder: None)
    assert untar_data(good, mode='full') == path
    with pytest.raises(DataError, match='whose hash is not known'): untar_data(good, mode='full', known_hash=d.file_hash(good))
    assert (untar_data(good, mode='full', known_hash=d.file_hash(good), force=True)/'a').is_dir()

@pytest.mark.parametrize('known', ['foo:abc', 'sha-256:abc', 'shake_128:abc'])
def test_an_unknown_kind_of_hash_is_named_before_anything_is_done(tmp_path, server, known):
    for call in (lambda: d.check_hash(tmp_path/'missing', known), lambda: untar_data(server.at('x.tgz'), mode='full', known_hash=known)):
        with pytest.raises(DataError, match=f"^'{known}': there is no kind of hash"): call()
    assert not server.asked

def test_a_wrong_hash_is_an_error_even_where_a_sample_exists(server, good):
    shutil.copy(good, server.folder/'x.tgz')
    with pytest.raises(DataError, match='not the file'): untar_data(row('mnist', server.at('x.tgz'), hash='0'*64, sample='exp.samples:make_mnist'), mode='auto')

@pytest.mark.parametrize('first', ['missing.tgz', 'short.tgz', None])
def test_the_next_address_is_tried(server, good, home, first):
    shutil.copy(good, server.folder/'x.tgz')
    path = untar_data(row('x', server.at(first) if first else closed_port(), server.at('x.tgz')), mode='full')
    assert (path/'a'/'1.txt').read_text() == 'one'

@pytest.mark.parametrize('name', ['missing.tgz', 'short.tgz'])
def test_a_download_that_fails_or_stops_half_way_leaves_nothing(server, home, name):
    with pytest.raises(NotAvailable, match=f'{name} could not be downloaded from 127.0.0.1'): untar_data(server.at(name), mode='full')
    assert not tree(home) and not [o for o in home.rglob('*') if 'tmp' in o.name]

def test_an_address_that_answers_no_is_no_missing_network(server, quick_sample, capsys):
    for other in (closed_port(), server.at('short.tgz')):
        with pytest.raises(NotAvailable, match=r'127.0.0.1:\d+ \(404 File not found\)') as caught: untar_data(row('x', server.at('x.tgz'), other), mode='full')
        assert 'network' not in str(caught.value)
    untar_data(row('lost', server.at('x.tgz'), sample=quick_sample), mode='auto')
    assert re.search(r'lost: the built-in sample, because x.tgz could not be downloaded from \S+ \(404 File not found\)$', capsys.readouterr().out.strip())

def test_ctrl_c_in_a_download_leaves_nothing(server, home, good, monkeypatch):
    shutil.copy(good, server.folder/'x.tgz')
    def interrupt(self, n): raise KeyboardInterrupt
    monkeypatch.setattr(d._Bar, 'update', interrupt)
    with pytest.raises(KeyboardInterrupt): untar_data(server.at('x.tgz'), mode='full')
    assert not tree(home) and not [o for o in home.rglob('*') if 'tmp' in o.name]

@pytest.fixture
def quick_sample(monkeypatch):
    "A maker that takes no time."
    monkeypatch.setattr('exp.samples.make_mnist', lambda folder: (folder/'made.txt').write_text('sample'))
    return 'exp.samples:make_mnist'

@pytest.mark.parametrize('address', ['https://nowhere.invalid/x.tgz', None])
def test_without_a_network_auto_falls_back_and_says_so(address, quick_sample, capsys):
    lost = row('lost', address or closed_port(), sample=quick_sample)
    with pytest.raises(NotAvailable, match='is there a network'): untar_data(lost, mode='full')
    path = untar_data(lost, mode='auto')
    said = capsys.readouterr().out
    assert d.is_sample(path) and said.startswith('lost: the built-in sample, because x.tgz could not be downloaded') and said.count('\n') == 1
    with pytest.raises(NotAvailable): untar_data(address or closed_port(), mode='auto')

def test_the_wait_for_a_connection_is_short_and_not_repeated(monkeypatch):
    import requests
    asked = []
    def get(url, timeout=None, **kw):
        asked.append((url, timeout))
        raise requests.exceptions.ConnectTimeout('too slow')
    monkeypatch.setattr(requests, 'get', get)
    with pytest.raises(NotAvailable, match='ConnectTimeout'): untar_data(row('x', 'https://a.invalid/x.tgz', 'https://b.invalid/x.tgz'), mode='full')
    assert [u for u, _ in asked] == ['https://a.invalid/x.tgz', 'https://b.invalid/x.tgz'] and all(t[0] <= 5 for _, t in asked)

# --- modes and names ---------------------------------------------------------------------------------------------------------

def test_the_mode_comes_from_the_argument_the_environment_or_the_test_runner(monkeypatch):
    assert d.data_mode() == 'auto'
    monkeypatch.setenv('IN_TEST', '1')
    assert d.data_mode() == 'sample'
    monkeypatch.setenv('EXP_DATA', 'full')
    assert d.data_mode() == 'full' and d.data_mode('auto') == 'auto'
    monkeypatch.setenv('EXP_DATA', 'smaple')
    with pytest.raises(ValueError, match="EXP_DATA='smaple'"): untar_data(URLs.MNIST)

def test_sample_mode_takes_the_sample_only(monkeypatch, quick_sample):
    real = d.data_folder(find_data('mnist'))
    d.make_once(real, dict(name='mnist', source='mirror'), lambda folder: (folder/'real.txt').write_text('real'))
    monkeypatch.setattr(d, 'download', lambda *a: pytest.fail('asked the network'))
    monkeypatch.setenv('EXP_DATA', 'sample')
    path = untar_data(URLs.MNIST)
    assert (path/'made.txt').exists() and d.is_sample(path) and real not in path.parents and path != real
    assert untar_data(URLs.MNIST, mode='auto') == untar_data(URLs.MNIST, mode='full') == real
    with pytest.raises(DataError, match='no built-in sample.*EXP_DATA'): untar_data(URLs.NIETZSCHE)

def test_a_samples_folder_follows_the_versions_it_is_made_of(monkeypatch):
    first = d.sample_folder(find_data('imdb'))
    monkeypatch.setattr(d, 'sample_versions', lambda data: dict(numpy='99'))
    assert d.sample_folder(find_data('imdb')) != first and d.sample_folder(find_data('imdb')).name == 'imdb'

@pytest.mark.parametrize('what', ['mnits', '', '/no/such/file.tgz', 'ftp://example.org/x.tgz', 'https://example.org/'])
def test_what_is_no_dataset_is_an_error_that_lists_them(what):
    with pytest.raises(DataError, match='mnist, imagenette2-160'): untar_data(what)

def test_every_address_in_urls_is_in_the_registry():
    named = {v for k, v in vars(URLs).items() if k[0] != '_'}
    assert named == {o.url for o in DATASETS} and len({o.name for o in DATASETS}) == len(DATASETS)
    assert find_data(URLs.MNIST.rstrip('/')) is find_data('MNIST') is find_data('mnist') and find_data(URLs.IMDB.replace('https', 'http')).name == 'imdb'
    assert d.datasets.untar_data is untar_data and d.datasets.URLs is URLs

def test_two_archives_of_one_name_do_not_share_a_folder(tmp_path):
    for i in range(2): (tmp_path/f'{i}').mkdir()
    paths = [untar_data(tar_of(tmp_path/f'{i}'/'data.tgz', ('d/x.txt', f'{i}')), mode='full') for i in range(2)]
    assert [(p/'x.txt').read_text() for p in paths] == ['0', '1'] and [p.name for p in paths] == ['data', 'data']
    assert find_data('https://a.org/data.tgz').folder != find_data('https://b.org/data.tgz').folder

def test_flat_archives_and_mac_leftovers(tmp_path):
    flat = untar_data(zip_of(tmp_path/'flat.zip', ('a.txt', 'x'), ('b/c.txt', 'y')), mode='full')
    mac = untar_data(zip_of(tmp_path/'mac.zip', ('top/a.txt', 'x'), ('__MACOSX/top/._a.txt', 'junk')), mode='full')
    assert set(tree(flat)) == {'.exp.json', 'a.txt', 'b/c.txt'} and set(tree(mac)) == {'.exp.json', 'a.txt'}

def test_data_status_says_where_things_stand(tmp_path, monkeypatch, good, quick_sample):
    def at(name): return next((r['real'], r['sample']) for r in d.data_status() if r['name'] == name)
    assert at('mnist') == ('-', 'on request') and at('nietzsche') == ('-', '-')
    untar_data('mnist', mode='sample')
    monkeypatch.setenv('EXP_MIRROR', str(tmp_path))
    (tmp_path/'nietzsche.txt').write_text('x')
    assert at('mnist') == ('-', 'made') and at('nietzsche') == ('mirror', '-')
    untar_data('nietzsche', mode='full')
    assert at('nietzsche') == ('cache', '-')

# --- idx ---------------------------------------------------------------------------------------------------------------------

IDX_TYPES = 'u1', 'i1', 'i2', 'i4', 'f4', 'f8'

@given(st.sampled_from(IDX_TYPES).flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))), st.sampled_from(['.gz', '']))
def test_idx_round_trip(tmp_path_factory, a, suffix):
    file = tmp_path_factory.getbasetemp()/f'round{suffix}'
    write_idx(file, a)
    b = read_idx(file)
    assert b.dtype == a.dtype and b.shape == a.shape and b.tobytes() == a.tobytes() and b.flags.writeable

@given(hnp.arrays('i2', (2, 3)), st.integers(0, 27))
def test_idx_cut_off_anywhere_is_an_error(tmp_path_factory, a, n):
    file = tmp_path_factory.getbasetemp()/'cut.idx'
    write_idx(file, a)
    file.write_bytes(file.read_bytes()[:min(n, file.stat().st_size - 1)])
    with pytest.raises(DataError, match='cut.idx'): read_idx(file)

@pytest.mark.parametrize('data', [b'', b'PK\3\4 a zip', b'\0\0\7\1\0\0\0\1x', struct.pack('>4BI', 0, 0, 8, 1, 2) + b'abc', struct.pack('>4B2I', 0, 0, 8, 2, 2**31, 2**31)])
def test_idx_that_is_something_else(tmp_path, data):
    (tmp_path/'x').write_bytes(data)
    with pytest.raises(DataError, match=re.escape(str(tmp_path/'x'))): read_idx(tmp_path/'x')

def test_idx_cut_off_inside_gzip_and_types_it_does_not_know(tmp_path):
    write_idx(tmp_path/'x.gz', np.arange(1000, dtype='i4'))
    (tmp_path/'x.gz').write_bytes((tmp_path/'x.gz').read_bytes()[:-20])
    with pytest.raises(DataError, match='x.gz is broken or cut off'): read_idx(tmp_path/'x.gz')
    with pytest.raises(ValueError, match='uint8.*not int64'): write_idx(tmp_path/'y', np.arange(3))

# --- the built-in samples ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='session')
def made_twice(tmp_path_factory):
    "name -> the folders of two samples: one made here, one by a process with another hash seed, beside this one."
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base          # workers share what is made
    code = f'from exp.nb_00a import *\nfor name in {MADE!r}: print(untar_data(name, mode="sample").parent.name)'
    env = {**os.environ, 'EXP_HOME': str(base/'second'), 'PYTHONHASHSEED': '7'}
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as other, pytest.MonkeyPatch.context() as m:
        m.setenv('EXP_HOME', str(base/'first'))
        first = {name: untar_data(name, mode='sample') for name in reversed(MADE)}
    assert other.returncode == 0
    return {name: (p, base/'second'/p.relative_to(base/'first')) for name, p in first.items()}

@pytest.fixture
def sample(made_twice): return lambda name: made_twice[name][0]

@pytest.mark.parametrize('name', MADE)
def test_samples_are_the_same_bytes_in_any_process(made_twice, name):
    first, second = map(tree, made_twice[name])
    assert list(first) == list(second) and [k for k in first if first[k] != second[k]] == []

@pytest.mark.parametrize('name', MADE)
def test_the_marker_of_a_sample_says_what_it_is_made_of(sample, name):
    marker = d.find_marker(next(o for o in sample(name).rglob('*') if o.is_file()))
    assert marker['source'] == 'sample' and marker['name'] == name and d.is_sample(sample(name)) and set(find_data(name).needs) <= set(marker['versions'])
    assert d.pick_size(sample(name), full=1, cpu=2, sample=3) == 3

def test_mnist_sample(sample):
    x, y = (read_idx(sample('mnist')/f'train-{o}-ubyte.gz') for o in ('images-idx3', 'labels-idx1'))
    u, v = (read_idx(sample('mnist')/f't10k-{o}-ubyte.gz') for o in ('images-idx3', 'labels-idx1'))
    assert x.shape == (12_000, 28, 28) and u.shape == (2_000, 28, 28) and len(y) == 12_000 and len(v) == 2_000 and x.dtype == y.dtype == np.uint8
    for some, labels in ((x[:10_000], y[:10_000]), (x[10_000:], y[10_000:]), (u, v)):
        assert (np.bincount(labels, minlength=10)/len(labels) > .05).all()
        assert some.max() == 255 and (some == 0).mean() > .5 and some[:, [0, -1]].mean() < 10        # white on black, with an empty frame
    parts = [{o.tobytes() for o in some} for some in (x[:10_000], x[10_000:], u)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]

def images_of(files):
    from PIL import Image
    for f in files:
        with Image.open(f) as im:
            im.load()
            yield f, im

def test_imagenette_sample(sample):
    path, sizes, modes = sample('imagenette2-160'), set(), []
    from exp.samples import IMAGENETTE
    for part, n in (('train', 130), ('val', 40)):
        assert sorted(o.name for o in (path/part).iterdir()) == sorted(IMAGENETTE) and all(len(list((path/part/c).glob('*.JPEG'))) == n for c in IMAGENETTE)
    for f, im in images_of(sorted(path.rglob('*.JPEG'))[::7]):
        assert im.format == 'JPEG' and min(im.size) == 160
        sizes.add(im.size), modes.append(im.mode)
    assert len(sizes) > 20 and set(modes) == {'RGB', 'L'} and modes.count('L') < len(modes)/10

def test_imagewoof_sample(tmp_path):
    from exp.samples import IMAGENETTE, IMAGEWOOF, make_imagewoof_160
    make_imagewoof_160(tmp_path, n_train=2, n_val=1)
    assert sorted(o.name for o in (tmp_path/'train').iterdir()) == sorted(IMAGEWOOF) and len(list(tmp_path.rglob('*.JPEG'))) == 30
    assert not set(IMAGEWOOF) & set(IMAGENETTE) and len(IMAGEWOOF) == len(IMAGENETTE) == 10

def test_pets_sample(sample):
    files = sorted((sample('oxford-iiit-pet')/'images').glob('*.jpg'))
    names = [re.fullmatch(r'(.+)_\d+', f.stem)[1] for f in files]
    assert len(set(names)) == 37 and len(files) == 37*36 and any('_' in n for n in names)
    assert all(160 <= min(im.size) <= 240 for _, im in images_of(files[::20]))

def test_imdb_sample(sample):
    from exp.samples import LIBRARIES, hide_names
    path = sample('imdb')
    texts = {part: [f.read_text(encoding='utf-8') for f in sorted((path/part).rglob('*.txt'))] for part in ('train', 'test', 'unsup')}
    assert sorted(o.name for o in (path/'train').iterdir()) == sorted(o.name for o in (path/'test').iterdir()) == sorted(LIBRARIES)
    counts = [len(list((path/'train'/c).iterdir())) for c in LIBRARIES]
    assert max(counts) < 2*min(counts) and len(texts['test']) > 500 and len(texts['unsup']) > 500
    everything = [t for part in texts.values() for t in part]
    assert len(set(everything)) == len(everything) and all(20 < len(t.split()) <= 300 and hide_names(t) == t for t in everything)
    def runs(t, n=6): return {tuple(w[i:i + n]) for w in [re.findall(r'\w+', t.lower())] for i in range(max(1, len(w) - n + 1))}
    known = set().union(*map(runs, texts['train']))
    copied = [len(runs(t) & known)/len(runs(t)) for t in texts['test']]
    assert np.mean(np.array(copied) >= .5) < .02, 'nearly none: the maker asks for a third, in another order'

def test_wikitext_sample(sample):
    parts = {o: (sample('wikitext-2')/f'wiki.{o}.tokens').read_text(encoding='utf-8') for o in ('train', 'valid', 'test')}
    for text in parts.values():
        lines = text.splitlines()
        assert all(l == f' {" ".join(l.split())} ' for l in lines) and re.match(' = [^=]', lines[0]) and any(l.startswith(' = = ') for l in lines) and '<unk>' in text
    vocab = set(parts['train'].split())
    assert len(parts['train'].split()) > 200_000 and set(parts['valid'].split()) | set(parts['test'].split()) <= vocab

@pytest.mark.parametrize('name', MADE)
def test_show_sample_shows_it(sample, name):
    shown = d.show_sample(sample(name), n=4)
    if name in ('imdb', 'wikitext-2'): assert '<table>' in shown._repr_html_() and 'lib' in repr(shown) + 'lib'
    else: assert len(shown.axes) == 8 and sum(bool(a.images) for a in shown.axes) == 4

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
def test_images_of_any_kind_are_shown(tmp_path, mode):
    from PIL import Image
    Image.new('L', (6, 4), 200).convert('I' if mode == 'I;16' else mode).convert(mode).save(tmp_path/'x.png')
    shown = d.show_sample(tmp_path).axes[0].images[0].get_array()
    assert shown.shape == ((4, 6) if mode in ('L', 'I;16') else (4, 6, 3))

def test_palettes_and_cmyk_are_shown_in_their_colours(tmp_path):
    from PIL import Image
    red = Image.new('RGB', (6, 4), (250, 10, 10))
    for image, name in ((red.convert('P', palette=Image.Palette.ADAPTIVE), 'p.png'), (red.convert('CMYK'), 'c.jpg')):
        image.save(tmp_path/name)
        assert np.abs(d._pixels(tmp_path/name).astype(int) - (250, 10, 10)).max() < 12

def test_text_tables_escape_what_they_show(): assert '<script>' not in d.TextTable(['<script>'], [['<script>']])._repr_html_()

# --- real data, where it is at hand ------------------------------------------------------------------------------------------

@pytest.fixture
def real(monkeypatch, home):
    "A function that gives a real dataset's folder, or skips; the folder goes at the end, since some hold thousands of files."
    monkeypatch.setenv('EXP_MIRROR', REAL_MIRROR)
    def get(name):
        if not d.mirror_files(find_data(name)): pytest.skip(f'no folder in EXP_MIRROR holds {name}')
        return untar_data(name, mode='full')
    yield get
    shutil.rmtree(home, ignore_errors=True)

def test_real_mnist(real, monkeypatch):
    path = real('mnist')
    x, y = read_idx(path/'train-images-idx3-ubyte.gz'), read_idx(path/'train-labels-idx1-ubyte.gz')
    assert x.shape == (60_000, 28, 28) and read_idx(path/'t10k-images-idx3-ubyte.gz').shape == (10_000, 28, 28)
    assert abs(x.mean()/255 - .1307) < 1e-4 and abs(x.std()/255 - .3081) < 1e-4 and list(y[:5]) == [5, 0, 4, 1, 9] and not d.is_sample(path)
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    assert d.pick_size(path, full=1, cpu=2, sample=3) == 2

def test_real_wikitext(real):
    path = real('wikitext-2')
    assert [len((path/f'wiki.{o}.tokens').read_text(encoding='utf-8').split()) for o in ('train', 'valid', 'test')] == [2_051_910, 213_886, 241_211]

def test_real_imagenette(real):
    path = real('imagenette2-160')
    assert [len(list((path/o).rglob('*.JPEG'))) for o in ('train', 'val')] == [9_469, 3_925]

# --- device, sizes, record ---------------------------------------------------------------------------------------------------

def test_importing_the_module_imports_nothing_heavy():
    code = "import sys, exp.nb_00a; print({'torch', 'pandas', 'matplotlib', 'sklearn', 'PIL', 'pooch', 'requests', 'IPython', 'exp.samples'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == 'set()\n'

@pytest.mark.parametrize('name', ['cpu', 'cpu:0'])
def test_the_device_can_be_chosen(monkeypatch, name):
    monkeypatch.setenv('EXP_DEVICE', name)
    assert d.default_device().type == 'cpu'

@pytest.mark.parametrize('name', ['gpu', 'cuda:99', 'meta', 'cuda:', 'cpu:1'])
def test_a_device_that_is_not_here_is_an_error(monkeypatch, name):
    monkeypatch.setenv('EXP_DEVICE', name)
    with pytest.raises(ValueError, match=f"EXP_DEVICE='{name}': this machine has 1 cpu"): d.default_device()

def test_without_a_choice_the_device_works():
    import torch
    assert torch.ones(2, device=d.default_device()).sum().item() == 2

def test_the_devices_name(monkeypatch):
    import torch
    monkeypatch.setenv('EXP_DEVICE', 'cpu')
    for n, end in ((1, ', 1 thread'), (3, ', 3 threads')):
        monkeypatch.setattr(torch, 'get_num_threads', lambda: n)
        assert d.device_name() == d.cpu_name() + end and d.cpu_name()
    monkeypatch.setattr(d, 'default_device', lambda: torch.device('cuda', 0))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'A Great GPU {device.index}')
    assert d.device_name() == 'A Great GPU 0'
    monkeypatch.setattr(d, 'default_device', lambda: torch.device('mps'))
    assert d.device_name() == d.cpu_name() + ', mps'

@pytest.mark.parametrize('info, name', [('processor\t: 0\nmodel name\t: A Fast CPU @ 3 GHz\nprocessor\t: 1\nmodel name\t: A Fast CPU @ 3 GHz\n', 'A Fast CPU @ 3 GHz'), ('processor : 0\nBogoMIPS : 50\n', 'arm64'), (None, 'arm64')])
def test_the_processors_name(monkeypatch, tmp_path, info, name):
    "Some systems tell it in a file, some by the platform, and some only its kind."
    import platform
    if info is not None: (tmp_path/'cpuinfo').write_text(info)
    monkeypatch.setattr(d, 'Path', lambda _: tmp_path/'cpuinfo')
    monkeypatch.setattr(platform, 'processor', lambda: '')
    monkeypatch.setattr(platform, 'machine', lambda: 'arm64')
    assert d.cpu_name() == name

def test_pick_size_by_device(tmp_path, monkeypatch):
    import torch
    sizes = dict(full='full', cpu='cpu', sample='sample')
    for device, expected in (('cpu', 'cpu'), ('cuda', 'full'), ('mps', 'full')):
        monkeypatch.setattr(d, 'default_device', lambda: torch.device(device))
        assert d.pick_size(tmp_path, **sizes) == expected
    with pytest.raises(TypeError): d.pick_size(tmp_path, 1, 2, 3)

def test_ran_on_prints_and_records(monkeypatch, good, tmp_path, capsys):
    path, records = untar_data(good, mode='full'), []
    monkeypatch.setattr(d, 'show_record', lambda record, text, html='': records.append((record, text)))
    d.ran_on(path/'a', tmp_path, train=50_000, bs=64)
    record, text = records[0]
    assert record['kind'] == 'ran_on' and record['data'] == {'good': 'file', tmp_path.name: 'own folder'} and record['sizes'] == dict(train=50_000, bs=64)
    assert record['versions']['numpy'] == np.__version__ and record['seconds'] > 0 and json.dumps(record)
    assert 'train 50,000' in text and 'good (file)' in text
    with d.new_folder(tmp_path/'own', dict(source='lesson')): pass
    d.ran_on(tmp_path/'own')
    assert records[1][0]['data'] == {'own': 'lesson'}
    monkeypatch.undo()
    d.ran_on()
    assert 'versions' in capsys.readouterr().out
