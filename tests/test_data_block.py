"Lesson 08's data block where the lesson doesn't look: odd folders, odd images, random lists, other ways to start workers."
import copy, gc, multiprocessing.popen_fork, os, pickle, random, subprocess, sys, warnings
from collections import Counter
from functools import partial
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
import exp.nb_08 as nb

def save(path, size=(20, 16), mode='RGB', colour=None, **kw):
    "An image file, with noise in it or one colour; returns its path."
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.new(mode, size, colour) if colour is not None else Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    im.save(path, **kw)
    return path

@pytest.fixture
def pets(tmp_path):
    "Two classes, four images each in train, two each in valid."
    for part, n in (('train', 4), ('valid', 2)):
        for pet in ('cat', 'dog'):
            for i in range(n): save(tmp_path/part/pet/f'{pet}_{i}.jpg')
    return tmp_path

TFMS = [nb.make_rgb, nb.ResizeFixed(8), nb.to_byte_tensor]

def labelled(path, tfms=TFMS, f=nb.parent_labeler):
    sd = nb.SplitData.split_by_func(nb.ImageList.from_files(path, tfms=tfms), nb.grandparent_splitter)
    return nb.label_by_func(sd, f, proc_y=nb.CategoryProcessor())

# files

def test_hidden_files_and_folders_are_left_out(pets):
    save(pets/'train'/'cat'/'.hidden.jpg')
    save(pets/'.thumbnails'/'cat'/'1.jpg')
    assert not [f for f in nb.get_files(pets, nb.image_extensions, recurse=True) if any(p.startswith('.') for p in f.relative_to(pets).parts)]

def test_files_of_a_folder_whose_own_path_is_hidden(tmp_path):
    save(tmp_path/'.cache'/'a.jpg')
    assert [f.name for f in nb.get_files(tmp_path/'.cache')] == ['a.jpg']

def test_ls_stays_ours_whatever_is_imported_later(pets, root):
    "fastcore gives paths an `ls`, too, and fastprogress imports fastcore."
    for name in ('b.txt', 'a.txt', '.hidden'): (pets/name).touch()
    code = 'import exp.nb_12a, fastprogress.fastprogress, fastcore.xtras, pathlib, sys; print(*(o.name for o in pathlib.Path(sys.argv[1]).ls()))'
    done = subprocess.run([sys.executable, '-c', code, pets], cwd=root, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.stdout.split() == ['a.txt', 'b.txt', 'train', 'valid'], done.stderr

def test_files_beside_folders_are_sorted_as_paths_are(tmp_path):
    for name in ('b/1.jpg', 'a.jpg', 'c.jpg', 'b/a/2.jpg', 'b-1/3.jpg'): save(tmp_path/name, size=(2, 2))
    assert (found := nb.get_files(tmp_path, recurse=True)) == sorted(found) and len(found) == 5

def test_extensions_in_any_case_and_with_or_without_dot(tmp_path):
    for name in ('a.JPG', 'b.jpg', 'c.Jpeg', 'd.jpg.txt', 'jpg'): (tmp_path/name).write_bytes(b'')
    assert [f.name for f in nb.get_files(tmp_path, ['.jpg', 'JPEG'])] == ['a.JPG', 'b.jpg', 'c.Jpeg']
    assert len(nb.get_files(tmp_path)) == 5

def test_endings_of_several_dots(tmp_path):
    for name in ('a.nii.gz', 'b.NII.GZ', 'c.gz'): (tmp_path/name).write_bytes(b'')
    assert [f.name for f in nb.get_files(tmp_path, '.nii.gz')] == ['a.nii.gz', 'b.NII.GZ']
    assert len(nb.get_files(tmp_path, 'gz')) == 3

@settings(max_examples=30)
@given(names=st.lists(st.lists(st.text('ab-_.Z1 é', min_size=1, max_size=4).filter(lambda s: s.strip('. ') and s[0] != '.'), min_size=1, max_size=3), min_size=1, max_size=12))
def test_get_files_finds_what_rglob_finds_in_sorted_order(names, tmp_path_factory):
    root = tmp_path_factory.mktemp('files')
    for parts in names:
        folder = root.joinpath(*[f'{p}d' for p in parts[:-1]])
        folder.mkdir(parents=True, exist_ok=True)
        (folder/f'{parts[-1]}.png').write_bytes(b'')
    assert nb.get_files(root, '.png', recurse=True) == sorted(root.rglob('*.png'))

def test_empty_and_missing_folders(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(nb.DataError, match='empty: no file in it; it is empty'): nb.get_files(tmp_path/'empty')
    with pytest.raises(nb.DataError, match='it is empty'): nb.ImageList.from_files(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'): nb.get_files(tmp_path/'nowhere')
    (tmp_path/'notes.txt').write_text('x')
    with pytest.raises(NotADirectoryError, match='notes.txt'): nb.get_files(tmp_path/'notes.txt')
    with pytest.raises(nb.DataError, match='only 1 other files'): nb.ImageList.from_files(tmp_path)

def test_recursion_is_advised_only_where_it_finds_something(tmp_path):
    save(tmp_path/'inside'/'a.png')
    (tmp_path/'notes.txt').write_text('x')
    with pytest.raises(nb.DataError, match='recurse=True looks into its folders'): nb.get_files(tmp_path, '.png')
    with pytest.raises(nb.DataError, match=r'no file ending in \.jpg in it, only 2 other files$'): nb.get_files(tmp_path, '.jpg')

def test_include_names_folders_of_the_first_level_only(tmp_path):
    for p in ('a/x/1.jpg', 'b/a/2.jpg', 'c/3.jpg'): save(tmp_path/p)
    found = nb.get_files(tmp_path, recurse=True, include=['b', 'c'])
    assert [f.relative_to(tmp_path).as_posix() for f in found] == ['b/a/2.jpg', 'c/3.jpg']
    assert nb.get_files(tmp_path, recurse=True, include='c') == [tmp_path/'c'/'3.jpg']

@pytest.mark.skipif(os.name == 'nt', reason='links need rights on Windows')
def test_links_are_followed_but_not_in_circles(pets, tmp_path_factory):
    save((away := tmp_path_factory.mktemp('away'))/'far.jpg')
    (pets/'train'/'linked').symlink_to(away)
    (pets/'train'/'circle').symlink_to(pets)
    names = [f.name for f in nb.get_files(pets, '.jpg', recurse=True)]
    assert names.count('far.jpg') == 1 and len(names) == 13

def test_a_class_without_an_image_is_named(pets):
    (pets/'train'/'cow').mkdir()
    (pets/'train'/'cow'/'1.heic').write_bytes(b'x')
    with pytest.warns(UserWarning, match='no image in .*cow'): il = nb.ImageList.from_files(pets)
    assert len(il) == 12

def test_no_warning_where_every_class_has_images(pets):
    (pets/'models').mkdir()
    with warnings.catch_warnings(action='error'): nb.ImageList.from_files(pets)

# lists and transforms

@given(st.lists(st.integers(-3, 3), max_size=6))
def test_compose_sorts_by_order_and_is_stable(orders):
    def tagger(i, order):
        def f(x): return [*x, (order, i)]
        f._order = order
        return f
    assert nb.compose([], [tagger(i, o) for i, o in enumerate(orders)]) == sorted((o, i) for i, o in enumerate(orders))

def test_items_that_are_lists_themselves():
    "As texts will be: lists of numbers."
    il = nb.ItemList([[1, 2], [3], [4, 5]])
    assert il[0] == [1, 2] and il[[0, 1]] == [[1, 2], [3]] and il[torch.tensor(2)] == [4, 5] and il[np.int64(1)] == [3] and list(il) == il[:]

def test_new_of_another_class_keeps_path_and_transforms(pets):
    il = nb.ImageList.from_files(pets, tfms=TFMS)
    new = il.new(['a'], cls=nb.ItemList)
    assert type(new) is nb.ItemList and new.path == il.path and new.tfms is TFMS

def test_files_are_closed_whatever_the_transforms_do(pets):
    opened = []
    class Watched(nb.ImageList):
        def get(self, fn):
            opened.append(super().get(fn))
            return opened[-1]
    def fail(im): raise KeyError('oh')
    for tfms in (None, [nb.make_rgb], TFMS, [lambda im: 3]): Watched.from_files(pets, tfms=tfms)[:]
    with pytest.raises(KeyError) as e: Watched.from_files(pets, tfms=fail)[0]
    assert 'cat_0.jpg' in e.value.__notes__[0]
    assert len(opened) == 49 and all(im.fp is None or im.fp.closed for im in opened)

def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (9, 9), c) for c in ('red', 'blue')]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:])
    im = nb.ImageList.from_files(tmp_path, tfms=nb.make_rgb)[0]
    assert im.getpixel((4, 4)) == (255, 0, 0)

BROKEN = {'text.png': b'not an image', 'empty.jpg': b'', 'zeros.jpg': bytes(1000)}

@pytest.mark.parametrize('name', [*BROKEN, 'cut.jpg', 'cut.png', 'gone.jpg'])
def test_a_broken_file_is_named(tmp_path, name):
    if name in BROKEN: (tmp_path/name).write_bytes(BROKEN[name])
    elif name != 'gone.jpg': (tmp_path/name).write_bytes((b := save(tmp_path/name, (100, 100)).read_bytes())[:len(b)//2])
    with pytest.raises(nb.DataError, match=f'{name}.*verify_images'): nb.ImageList([tmp_path/name], tmp_path, tfms=TFMS)[0]
    assert nb.verify_images([tmp_path/name]).file.tolist() == [tmp_path/name]

def test_verify_images_takes_folders_lists_and_files_and_keeps_their_order(pets):
    for name in ('train/cat/z.jpg', 'valid/dog/a.png'): (pets/name).write_bytes(b'x')
    bad = [pets/'train'/'cat'/'z.jpg', pets/'valid'/'dog'/'a.png']
    for paths in (pets, str(pets), nb.ImageList.from_files(pets), nb.get_files(pets, recurse=True)):
        for workers in (1, 3): assert nb.verify_images(paths, workers).file.tolist() == bad
    assert nb.verify_images([]).empty and list(nb.verify_images([]).columns) == ['file', 'problem']

# images of all kinds

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'I', 'I;16', 'PA', 'RGBX', 'RGBa'])
def test_make_rgb_takes_every_mode(mode):
    im = nb.make_rgb(Image.new(mode, (4, 3)))
    assert im.mode == 'RGB' and im.size == (4, 3)

def test_transparency_is_put_on_white(tmp_path):
    clear = Image.new('RGBA', (2, 2), (255, 0, 0, 0))
    half = Image.new('LA', (2, 2), (0, 128))
    palette = Image.new('P', (2, 2), 0)
    palette.putpalette([0, 0, 255])
    palette.info['transparency'] = 0
    assert nb.make_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert nb.make_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    assert nb.make_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    keyed = Image.new('RGB', (2, 2), (1, 2, 3))
    keyed.info['transparency'] = (1, 2, 3)
    assert nb.make_rgb(keyed).getpixel((0, 0)) == (255, 255, 255)

def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16)).save(tmp_path/'scan.png')
    assert np.asarray(nb.ImageList.from_files(tmp_path, tfms=nb.make_rgb)[0])[0, :, 0].tolist() == [0, 1, 128, 255]

def test_an_opaque_image_keeps_its_pixels():
    a = np.random.default_rng(1).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    for im in (Image.fromarray(a), Image.fromarray(a).convert('RGBA')): assert (np.asarray(nb.make_rgb(im)) == a).all()

def test_one_batch_of_all_kinds(tmp_path):
    for i, (mode, ext) in enumerate([('L', 'jpg'), ('RGB', 'jpg'), ('CMYK', 'jpg'), ('RGBA', 'png'), ('P', 'gif'), ('LA', 'png'), ('1', 'png')]):
        for part in ('train', 'valid'): save(tmp_path/part/'a'/f'{i}.{ext}', mode=mode)
    xb, yb = next(iter(labelled(tmp_path).to_databunch(7, c_in=3).train_dl))
    assert xb.shape == (7, 3, 8, 8) and xb.dtype == torch.uint8

@pytest.mark.parametrize('size', [(640, 480), (31, 500), (8, 8), (5, 7)])
def test_draft_never_goes_below_the_size_asked_for(tmp_path, size):
    asked = []
    class Noting(nb.ResizeFixed):
        def __call__(self, item):
            item.draft(None, self.size)
            asked.append(item.size)
            return super().__call__(item)
    il = nb.ImageList([save(tmp_path/'a.jpg', size)], tmp_path, tfms=Noting((12, 9)))
    assert il[0].size == (12, 9)
    assert all(d >= min(o, n) for d, o, n in zip(asked[0], size, (12, 9)))

@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))
def test_to_byte_tensor_and_back(h, w, c):
    a = np.random.default_rng(h*w).integers(0, 256, (h, w, c), dtype=np.uint8)
    t = nb.to_byte_tensor(Image.fromarray(a[..., 0] if c == 1 else a))
    assert t.shape == (c, h, w) and t.is_contiguous() and (t.permute(1, 2, 0).numpy() == a).all()
    t.add_(1)   # its memory is its own

def test_to_float_tensor_leaves_its_input_alone():
    b = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    f = nb.to_float_tensor(b)
    assert f.min() == 0 and f.max() == 1 and b.dtype == torch.uint8 and nb.to_float_tensor(f) is f

# splits

def test_random_split_shares_and_order(pets):
    il = nb.ItemList(list(range(100)))
    sd = nb.SplitData.split_at_random(il, .25, seed=3)
    assert (len(sd.train), len(sd.valid)) == (75, 25) and sd.train.items == sorted(sd.train.items) and not {*sd.train.items} & {*sd.valid.items}
    for p in (0, 1, .001):
        with pytest.raises(ValueError, match='choose another'): nb.SplitData.split_at_random(il, p)

def test_split_of_nothing():
    with pytest.raises(ValueError, match='0 items for training'): nb.SplitData.split_by_func(nb.ItemList([]), bool)

def test_split_keeps_a_subclass_and_its_transforms(pets):
    class Mine(nb.ImageList): pass
    sd = nb.SplitData.split_by_func(Mine.from_files(pets, tfms=TFMS), nb.grandparent_splitter)
    assert type(sd.train) is type(sd.valid) is Mine and sd.valid.tfms is TFMS

def test_split_data_relays_copies_and_pickles(pets):
    ll = labelled(pets)
    assert ll.proc_y is ll.train.proc_y and ll.x is ll.train.x
    for o in (copy.copy(ll), copy.deepcopy(ll), pickle.loads(pickle.dumps(ll))):
        assert o.train.proc_y is o.valid.proc_y and o.proc_y.vocab == ['cat', 'dog'] and (o.valid[1][0] == ll.valid[1][0]).all()
    assert not hasattr(ll, 'nothing') and not hasattr(nb.SplitData.__new__(nb.SplitData), 'train')

# labels

@given(st.lists(st.text(max_size=3), min_size=1, max_size=30))
def test_category_processor_inverts_and_does_not_depend_on_the_order(labels):
    proc, shuffled = nb.CategoryProcessor(), random.Random(0).sample(labels, len(labels))
    assert proc.deprocess(proc(labels)) == labels
    other = nb.CategoryProcessor()
    other(shuffled)
    assert proc.vocab == other.vocab == sorted({*labels})

def test_vocabulary_does_not_grow():
    proc = nb.CategoryProcessor()
    proc(['a', 'b'])
    for _ in range(2):
        with pytest.raises(nb.UnseenLabel, match="'c'"): proc(['a', 'c'])
    assert proc.vocab == ['a', 'b'] and proc(['b']) == [1]

def test_unseen_label_in_valid_names_label_and_file(pets):
    save(pets/'valid'/'cow'/'moo.jpg')
    with pytest.raises(nb.UnseenLabel, match=r"moo\.jpg: the label 'cow' is none of the 2 of the training set \(cat, dog\)"): labelled(pets)

@pytest.mark.parametrize('bad', [None, float('nan'), np.float32('nan'), pd.NA, pd.NaT, torch.tensor(1), np.array(1), np.array([1, 2]), ['a'], {'a'}, {}], ids=repr)
def test_what_is_no_label_is_refused_and_its_file_is_named(pets, bad):
    with pytest.raises(nb.BadLabel, match=r'cat_2\.jpg: .* is no label of a category'): labelled(pets, f=lambda fn: bad if fn.name == 'cat_2.jpg' else 'cat')
    with pytest.raises(nb.BadLabel) as caught: nb.CategoryProcessor()(['a', bad])
    assert caught.value.index == 1
    with pytest.raises(nb.BadLabel): nb.CategoryProcessor(vocab=['a']).proc1(bad)

def test_labels_of_a_tensor_are_tensors_and_refused():
    with pytest.raises(nb.BadLabel, match=r'tensor\(1\) is no label'): nb.CategoryProcessor()(torch.tensor([1, 0]))

@pytest.mark.parametrize('labels', [[3, 1, 3], [.5, -1., .5], [True, False, True], [np.int64(3), 1, 3], list(np.array(['b', 'a', 'b'])), [(1, 'b'), (0, 'c'), (1, 'b')], pd.Series(['b', 'a', 'b'])], ids=repr)
def test_labels_of_all_kinds(labels):
    assert nb.CategoryProcessor()(labels) == nb.CategoryProcessor()(o for o in labels) == [1, 0, 1]

def test_a_class_only_in_train_is_no_error(pets):
    save(pets/'train'/'cow'/'moo.jpg')
    ll = labelled(pets)
    assert ll.to_databunch(2).c_out == 3 and Counter(ll.valid.y.items) == {0: 2, 2: 2}

def test_an_error_in_a_labeler_names_the_file(pets):
    with pytest.raises(ZeroDivisionError) as e: labelled(pets, f=lambda fn: 1/0)
    assert 'cat_0.jpg' in e.value.__notes__[0]

def test_several_processors_are_undone_backwards():
    class Add(nb.Processor):
        def __init__(self, n): self.n = n
        def proc1(self, o): return o + self.n
        def deproc1(self, o): return o - self.n
    class Double(nb.Processor):
        _order = 1
        def proc1(self, o): return o*2
        def deproc1(self, o): return o/2
    ld = nb.LabeledData(nb.ItemList([1, 2, 3]), nb.ItemList([4, 5, 6]), proc_x=[Double(), Add(1)], proc_y=Add(10))
    assert ld[:] == ([4, 6, 8], [14, 15, 16]) and ld.x_obj(0) == 1 and ld.x_obj([1, 2]) == [2, 3] and ld.y_obj(torch.tensor(2)) == 6

# batches

def test_batch_larger_than_the_data(pets):
    ll = labelled(pets)
    assert [len(x) for x, _ in ll.to_databunch(100).train_dl] == [8]
    with pytest.raises(ValueError, match='drop_last'): ll.to_databunch(100, drop_last=True)

def test_vocab_is_none_where_nobody_knows_it():
    ds = nb.LabeledData(nb.ItemList([1., 2.]), nb.ItemList([0, 1]))
    data = nb.SplitData(ds, ds).to_databunch(1)
    assert data.vocab is None and data.c is None and data.c_in is None

@pytest.mark.parametrize('start', ['spawn', pytest.param('fork', marks=pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here'))])
def test_workers_give_the_same_batches(pets, start):
    ll = labelled(pets)
    alone, helped = ll.to_databunch(2, c_in=3), ll.to_databunch(2, c_in=3, num_workers=1, multiprocessing_context=start)
    assert helped.train_dl.persistent_workers
    for (xa, ya), (xb, yb) in zip(alone.valid_dl, helped.valid_dl, strict=True): assert (xa == xb).all() and (ya == yb).all()

def test_random_transforms_in_workers_follow_the_seed(pets):
    def run(workers):
        nb.set_seed(7)
        data = labelled(pets, tfms=[*TFMS, jitter]).to_databunch(4, num_workers=workers)
        return [x for _ in range(2) for x, _ in data.train_dl]
    a, b = run(2), run(2)
    assert all((x == y).all() for x, y in zip(a, b)) and len({float(x.sum()) for x in a}) == 4

def jitter(t): return t.float() + random.random() + np.random.rand() + torch.rand(())
jitter._order = 40

def test_a_broken_file_in_a_worker_is_named(pets):
    (pets/'train'/'cat'/'cat_1.jpg').write_bytes(b'oops')
    with pytest.raises(nb.DataError, match='cat_1.jpg'): list(labelled(pets).to_databunch(8, num_workers=1).train_dl)

# normalising, networks, pictures

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_normalize_chan_keeps_type_and_input(dtype):
    x = torch.rand(2, 3, 4, 5).to(dtype)
    kept = x.clone()
    out = nb.norm_imagenette(x)
    assert out.dtype == dtype and (x == kept).all() and out.shape == x.shape
    expected = (x.double() - torch.tensor([.47, .48, .45])[:, None, None])/torch.tensor([.29, .28, .30])[:, None, None]
    assert torch.allclose(out.double(), expected, atol=.05 if dtype == torch.bfloat16 else 1e-5)

def test_normalize_chan_sends_its_numbers_to_a_device_once():
    x = torch.zeros(2, 3, 4, 4)
    for mean in ((.1, .2, .3), [.1, .2, .3], np.array([.1, .2, .3])): nb.normalize_chan(x, mean, (.5, .5, .5))
    before = nb._channels.cache_info()
    assert torch.equal(nb.normalize_chan(x, (.1, .2, .3), (.5, .5, .5)), nb.normalize_chan(x, torch.tensor([.1, .2, .3]), torch.tensor([.5, .5, .5])))
    after = nb._channels.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 2)

def test_normalize_chan_first_used_in_inference_mode():
    with torch.inference_mode(): nb.normalize_chan(torch.zeros(1, 2, 2), [.123], [.456])
    x = torch.zeros(1, 2, 2, requires_grad=True)
    nb.normalize_chan(x, [.123], [.456]).sum().backward()
    assert torch.allclose(x.grad, torch.full((1, 2, 2), 1/.456))

def test_normalize_chan_of_one_image_and_of_a_number_of_channels():
    assert nb.normalize_chan(torch.zeros(1, 2, 2, dtype=torch.uint8), [.5], [.25]).unique().tolist() == [-2]
    with pytest.raises(ValueError, match='3 means and 3 standard deviations'): nb.norm_imagenette(torch.rand(2, 4, 3, 3))
    with pytest.raises(ValueError, match='3 means'): nb.norm_imagenette(torch.rand(3, 3))

def test_norm_imagenette_pickles(): assert (pickle.loads(pickle.dumps(nb.norm_imagenette))(torch.zeros(3, 1, 1)) == nb.norm_imagenette(torch.zeros(3, 1, 1))).all()

@given(st.integers(1, 2**70))
def test_prev_pow_2(x): assert (p := nb.prev_pow_2(x)) <= x < 2*p and p & (p - 1) == 0

@pytest.mark.parametrize('c_in', [1, 3, 4])
def test_networks_for_other_channels(c_in):
    model = nb.get_cnn_model(nb.DataBunch(None, None, c_in, 5), [16], nb.conv_layer)
    assert model(torch.rand(2, c_in, 32, 32)).shape == (2, 5) and model[0][0].out_channels == nb.prev_pow_2(9*c_in)

def test_model_summary_leaves_everything_as_it_was(pets):
    data = labelled(pets, tfms=TFMS).to_databunch(4, c_in=3)
    learn, run = nb.get_learn_run([8], data, .1, nb.conv_layer, cbs=nb.BatchTransformXCallback(nb.norm_imagenette))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model[0].eval()
    for find_all in (False, True): assert len(nb.model_summary(run, learn, data, find_all)) == (5 if find_all else 7)
    assert all((v == before[k]).all() for k, v in learn.model.state_dict().items())
    assert learn.model.training and not learn.model[0].training and not any(m._forward_hooks for m in learn.model.modules())

@pytest.fixture
def plots():
    "Figures without a window, closed afterwards."
    import matplotlib
    matplotlib.use('agg')
    yield nb.plt
    nb.plt.close('all')

def test_show_batch_takes_images_tensors_pairs_and_data(pets, plots):
    images = nb.ImageList.from_files(pets)[:5]
    assert nb.show_batch(images).shape == (2, 4)
    assert nb.show_batch(torch.rand(6, 3, 4, 4), c=3).shape == (2, 3)
    assert nb.show_batch(images, c=2, r=1).shape == (1, 2)
    assert nb.show_batch([(im, str(i)) for i, im in enumerate(images)], c=5)[0, 3].get_title() == '3'
    assert not nb.show_batch(images)[1, 3].axison
    data, state = labelled(pets).to_databunch(4), torch.get_rng_state()
    axs = nb.show_batch(data, c=2)
    assert axs.shape == (3, 2) and {ax.get_title() for ax in axs.flat} <= {'cat', 'dog'} and (state == torch.get_rng_state()).all()

@pytest.mark.parametrize('im', [torch.rand(3, 4, 5), torch.rand(4, 5), torch.rand(1, 4, 5), torch.randint(256, (3, 4, 5), dtype=torch.uint8), Image.new('L', (5, 4)), Image.new('RGBA', (5, 4)), Image.new('P', (5, 4)), torch.randn(3, 4, 5, requires_grad=True)])
def test_show_image_takes(im, plots): assert nb.show_image(im).images[0].get_array().shape[:2] == (4, 5)

# workers that stay

def forget(loader):
    "Collects a loader with two workers that is a part of a ring. Returns what each wait for a worker's end has given: its exit status, or None if it hasn't ended."
    ring, ends = [loader(range(8), num_workers=2, persistent_workers=True)], []
    ring.append(ring)
    list(ring[0]), list(ring[0])
    wait = multiprocessing.popen_fork.Popen.wait
    def noted(self, timeout=None):
        ends.append(wait(self, timeout))
        return ends[-1]
    gc.collect()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(multiprocessing.popen_fork.Popen, 'wait', noted)
        del ring
        gc.collect()
    return ends

def test_workers_of_a_forgotten_loader_end_when_they_are_told():
    assert forget(nb.WorkerLoader) == [0, 0]

class Drawn:
    "Items that are drawn by chance, each by three sources."
    def __len__(self): return 7
    def __getitem__(self, i): return torch.tensor([i, random.randrange(10**6), np.random.randint(10**6), torch.randint(10**6, ()).item()])

class DrawnAtOnce(Drawn):
    def __getitems__(self, idxs): return [self[i] for i in idxs]

def epochs(n=2, ds=None, **kw):
    dl = nb.WorkerLoader(ds or Drawn(), 2, shuffle=True, **kw)
    return [torch.cat(list(dl)).tolist() for _ in range(n)]

@pytest.mark.parametrize('ds', [Drawn, DrawnAtOnce])
def test_what_workers_draw_does_not_depend_on_them(ds):
    nb.set_seed(5)
    first = epochs(ds=ds(), num_workers=1)
    for kw in (dict(num_workers=2), dict(num_workers=2, prefetch_factor=1), dict(num_workers=2, persistent_workers=True)):
        nb.set_seed(5)
        assert epochs(ds=ds(), **kw) == first
    flat = [v for e in first for _, *vs in e for v in vs]
    assert len(set(flat)) > len(flat) - 3   # no batch, epoch or source draws what another has drawn (but for chance)

def test_a_loaders_own_generator_gives_the_seeds():
    def with_seed(k): return epochs(num_workers=1, persistent_workers=True, generator=torch.Generator().manual_seed(k))
    a = with_seed(3)
    torch.rand(5)
    assert with_seed(3) == a != with_seed(4)

def test_workers_see_the_dataset_and_the_main_process_keeps_it():
    class Known(Drawn):
        colour = 'red'
        def __getitem__(self, i): return torch.tensor(len(self.colour))
    ds = Known()
    def init(i):
        info = torch.utils.data.get_worker_info()
        assert info.dataset.colour == 'red' and len(info.dataset) == 7 and info.dataset[0] == 3
        info.dataset.colour = 'orange'   # as one opens a file in each worker
    dl = nb.WorkerLoader(ds, 2, num_workers=1, worker_init_fn=init)
    assert torch.cat(list(dl)).tolist() == [6]*7 and len(dl) == 4 and dl.dataset is ds and ds.colour == 'red' and type(dl.batch_sampler) is torch.utils.data.BatchSampler

def test_what_a_worker_gets_can_be_pickled():
    items = pickle.loads(pickle.dumps(nb._SeededItems([3, 1, 2])))
    batch = pickle.loads(pickle.dumps(next(iter(nb._SeededBatches([[0, 2]], None)))))
    assert items.__getitems__(batch) == [3, 2] and batch.seed and copy.copy(items).ds == [3, 1, 2]

def test_loaders_without_batches_and_streams_are_left_alone():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(range(5))
    assert torch.cat(list(nb.WorkerLoader(Stream(), 2, num_workers=1))).tolist() == list(range(5))
    single = nb.WorkerLoader(list(range(5)), batch_size=None, num_workers=1)
    assert [int(o) for o in single] == list(range(5))
    assert [o.seeded for o in (single, nb.WorkerLoader(Stream(), 2, num_workers=1), nb.WorkerLoader(range(5), 2), nb.WorkerLoader(range(5), 2, num_workers=1))] == [False, False, False, True]

def test_to_databunch_has_such_loaders():
    ll = nb.LabeledData(nb.ItemList(list(range(8))), nb.ItemList(list(range(8))))
    data = nb.SplitData(ll, ll).to_databunch(4, num_workers=1)
    assert all(type(o) is nb.WorkerLoader and o.persistent_workers for o in (data.train_dl, data.valid_dl))
