"""Training on one's own files: a batch says what the annotations say, and what cannot work is refused before it begins."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tokenizers")

from inarch.learning import workshop
from inarch.learning.config import LearnConfig, validated
from inarch.learning.data_config import weights_part
from inarch.learning.models.glip_post import anchors
from inarch.learning.models.mdetr import GQA_HEADS
from inarch.learning.models.mdetr_config import MdetrConfig
from inarch.learning.models.registry import Config, build
from inarch.learning.tasks.boxes import corners_to_coco, to_corners
from inarch.learning.tasks.coco.courses import FilesCourse
from inarch.learning.tasks.coco.files import GQA_TYPES, ImageRow
from inarch.learning.tasks.coco.images import check_image
from inarch.learning.tasks.coco.kinds import rows_of
from inarch.learning.tasks.coco.tasks import Source
from inarch.learning.tasks.coco.world import FilesWorld
from inarch.learning.tasks.courses import Part, shard, tensors
from inarch.learning.tasks.glip_boxes import to_pixels
from inarch.learning.tasks.glip_targets import encode
from inarch.learning.tasks.worlds import open_world
from inarch.runtime.accuracy import Arrays
from inarch.structure.errors import InarchError

from tests.learning.tasks.annotated import EACH, make_files, settings
from tests.learning.tasks.small import Json
from tests.learning.tiny import GLIP, MDETR

CASES = [("refcoco", MDETR), ("gqa", MDETR), ("refcoco", GLIP), ("coco", GLIP)]
NAMES = ["refcoco-mdetr", "gqa-mdetr", "refcoco-glip", "coco-glip"]
every_case = pytest.mark.parametrize(("task", "model"), CASES, ids=NAMES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


def world_of(files: Path, task: str, model: Config, **more: Any) -> FilesWorld:
    sizes = {} if isinstance(model, MdetrConfig) else {"short": 64, "longest": 96}
    data = validated(LearnConfig, {"data": settings(files, task, **sizes | more)}, "settings").data
    world = open_world(data, model)
    assert isinstance(world, FilesWorld)
    return world


@every_case
def test_a_batch_depends_on_seed_number_and_part_alone(files: Path, task: str, model: Config) -> None:
    first, second = (world_of(files, task, model).course(world_of(files, task, model).first) for _ in range(2))
    second.batch(3, 6)  # and what comes next is begun with
    one, other = first.batch(3, 7), second.batch(3, 7)
    assert set(one) == set(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    for seed, step, part in ((3, 8, PARTS[0]), (4, 7, PARTS[0]), (3, 7, PARTS[1])):
        assert not np.array_equal(one["pixel_values"], first.batch(seed, step, part)["pixel_values"])


def test_images_of_batches_in_a_row_are_read_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course, read = world_of(files, "refcoco", MDETR).course("referring"), list[str]()
    image = Source.image

    def counted(source: Source, row: ImageRow, *, sized: bool = True) -> Any:
        read.append(row.file_name)
        return image(source, row, sized=sized)

    monkeypatch.setattr(Source, "image", counted)
    batches, each = 5, course.settings.images
    for step in range(batches):
        course.batch(0, step)
    assert batches * each <= len(read) <= (batches + 1) * each, "no more than the next batch's"
    read.clear()
    for step in range(20, 40):  # as while a structure is learned: each part has every other batch
        course.batch(0, step, "structure" if step % 2 else "weights")
    assert len(read) <= (20 + 5) * each, "what was expected first, and the next batch of either"


@every_case
def test_weights_and_structure_are_learned_on_images_of_their_own(files: Path, task: str, model: Config) -> None:
    course = world_of(files, task, model).course(world_of(files, task, model).first)
    assert (len(course.images), course.edge) == (50, 45)
    assert all(len(rows) == (1 if task == "coco" else EACH) for rows in course.about)
    seen = {part: {name for step in range(30) for name in chosen(course, step, part)} for part in PARTS}
    assert len(seen["structure"]) == 5
    assert not seen["weights"] & seen["structure"]
    assert seen["structure"] != {f"train{number}.png" for number in range(45, 50)}, "files are often sorted"


def annotated(files: Path, task: str) -> Json:
    document: Json = json.loads((files / f"{task}-train.json").read_text())
    return document


@pytest.mark.parametrize("model", [MDETR, GLIP], ids=["mdetr", "glip"])
def test_boxes_are_those_of_the_expressions(files: Path, model: Config) -> None:
    world, document = world_of(files, "refcoco", model), annotated(files, "refcoco")
    course = world.course("referring")
    wanted: dict[tuple[str, tuple[int, ...]], list[list[float]]] = {}
    for row, annotation in zip(document["images"], document["annotations"], strict=True):
        tokens = tuple(world.source.texts([row["caption"]])["input_ids"][0].tolist())
        wanted.setdefault((row["file_name"], tokens), []).append(annotation["bbox"])
    sizes = {row["file_name"]: (row["height"], row["width"]) for row in document["images"]}
    assert len(set(sizes.values())) == 3
    for step in range(6):
        names = chosen(course, step)
        batch = course.batch(0, step)
        height, width = batch["pixel_values"].shape[2:]
        for row, image in enumerate(batch["image"].tolist()):
            length = int(batch["attention_mask"][row].sum())
            said = tuple(batch["input_ids"][row, :length].tolist())
            original = np.asarray(sizes[names[image]][::-1])
            resized = np.asarray(world.source.preparation.size(sizes[names[image]])[::-1])
            scale = original if world.levels is None else np.asarray((width, height)) * original / resized
            found = corners_to_coco(to_corners(batch["boxes"][row, 0].astype(np.float64)) * np.tile(scale, 2))
            assert any(np.allclose(found, box, atol=1e-3) for box in wanted[names[image], said])
            # tokens_positive are all words here, and a GLIP's are so anyway; the start and the stop frame them.
            assert batch["spans"][row, 0].tolist() == [0 < place < length - 1 for place in range(batch["spans"].shape[2])]


PARTS: tuple[Part, ...] = ("weights", "structure")


def chosen(course: FilesCourse, step: int, part: Part = "weights") -> list[str]:
    """Files of a batch's images."""
    return [course.images[place].file_name for place in course.drawn(0, step, part)[0]]


def test_only_what_names_the_box_is_a_target_of_an_mdetr(files: Path, tmp_path: Path) -> None:
    document = annotated(files, "refcoco")
    for row, annotation in zip(document["images"], document["annotations"], strict=True):
        annotation["tokens_positive"] = [[row["caption"].rindex(" ") + 1, len(row["caption"])]]
    world = world_of(files, "refcoco", MDETR, train=str(written(tmp_path, document)))
    batch = world.course("referring").batch(0, 0)
    last = batch["attention_mask"].sum(1) - 2
    np.testing.assert_array_equal(batch["spans"][:, 0].argmax(1), last)
    assert (batch["spans"].sum((1, 2)) == 1).all()


def test_answers_are_the_files(files: Path) -> None:
    world, document = world_of(files, "gqa", MDETR), annotated(files, "gqa")
    answers = json.loads((files / "answers.json").read_text())
    wanted: dict[tuple[str, tuple[int, ...]], set[tuple[int, int]]] = {}
    for row in document["images"]:
        said = tuple(world.source.texts([row["caption"]])["input_ids"][0].tolist())
        kind = row["question_type"]
        wanted.setdefault((row["file_name"], said), set()).add((GQA_TYPES.index(kind), answers[f"answer_{kind}"][row["answer"]]))
    course = world.course("vqa")
    for step in range(6):
        names, batch = chosen(course, step), course.batch(0, step)
        assert not batch["box_mask"].any()
        for row, image in enumerate(batch["image"].tolist()):
            said = tuple(batch["input_ids"][row, : int(batch["attention_mask"][row].sum())].tolist())
            assert (batch["answer_types"][row], batch["answers"][row]) in wanted[names[image], said]


def test_objects_are_the_files_without_crowds_and_what_lies_outside(files: Path, tmp_path: Path) -> None:
    document = annotated(files, "coco")
    first = document["images"][0]
    bare = document["images"][1]["id"]
    document["annotations"] = [box for box in document["annotations"] if box["image_id"] != bare]
    more = {"image_id": first["id"], "category_id": 0, "area": 9.0}
    document["annotations"] += [
        more | {"id": 9000, "bbox": [0, 0, 3, 3], "iscrowd": 1},
        more | {"id": 9001, "bbox": [first["width"] + 5, 3, 4, 4], "iscrowd": 0},
        more | {"id": 9002, "bbox": [-2, -2, 12, 12], "iscrowd": 0},
    ]
    world = world_of(files, "coco", GLIP, train=str(written(tmp_path, document)))
    course = world.course("detection")
    of_image: dict[str, list[Any]] = {row["file_name"]: [] for row in document["images"]}
    names = {row["id"]: row["file_name"] for row in document["images"]}
    for box in document["annotations"][:-3]:
        of_image[names[box["image_id"]]].append((box["bbox"], box["category_id"]))
    of_image[first["file_name"]].append(([0, 0, 10, 10], 0))
    sizes = {row["file_name"]: (row["height"], row["width"]) for row in document["images"]}
    words = {number: at for at, number in enumerate(item["id"] for item in document["categories"])}
    seen = set()
    for step in range(40):
        found, batch = chosen(course, step), course.batch(0, step)
        height, width = batch["pixel_values"].shape[2:]
        for row, name in enumerate(found):
            seen.add(name)
            wanted = of_image[name]
            assert batch["box_mask"][row].sum() == len(wanted)
            scale = np.asarray(world.source.preparation.size(sizes[name])) / np.asarray(sizes[name])
            pixels = to_pixels(batch["boxes"][row, : len(wanted)], (height, width)) + (0, 0, 1, 1)
            expected = np.asarray([box for box, _ in wanted], np.float64).reshape(-1, 4) * np.tile(scale[::-1], 2)
            np.testing.assert_allclose(corners_to_coco(pixels), expected, atol=1e-3)
            # "square . circle ...": a name and a full stop each, behind the start.
            assert batch["spans"][row, : len(wanted)].argmax(1).tolist() == [1 + 2 * words[label] for _, label in wanted]
            assert (batch["spans"][row].sum(1) == batch["box_mask"][row]).all()
    assert {first["file_name"], document["images"][1]["file_name"]} <= seen


@every_case
def test_several_processes_come_to_what_one_does(files: Path, task: str, model: Config) -> None:
    world = world_of(files, task, model)
    course = world.course(world.first)
    trainee = course.trainee(build(world.fitted(model))).eval()
    batch = course.batch(1, 2)
    place = torch.device("cpu")
    whole = trainee(tensors(batch, place))
    parts = [trainee(tensors(shard(batch, rank, 2), place)) for rank in range(2)]
    assert whole
    for name, loss in whole.items():
        assert torch.isfinite(loss)
        torch.testing.assert_close(sum(part[name] for part in parts) / 2, loss, rtol=1e-4, atol=1e-5)


@every_case
def test_a_teacher_that_knows_as_much_says_nothing_new(files: Path, task: str, model: Config) -> None:
    world = world_of(files, task, model)
    course, config = world.course(world.first), world.fitted(model)
    batch = tensors(course.batch(1, 2), torch.device("cpu"))

    def distance(seed: int) -> float:
        student = course.trainee(build(config, seed=0)).eval().taught_by(course.trainee(build(config, seed=seed)), 3.0)
        return float(student(batch)["distil"].detach())

    assert distance(0) == pytest.approx(0, abs=1e-5)
    assert distance(1) > 1e-3


@every_case
def test_a_model_that_says_what_is_annotated_is_right(files: Path, task: str, model: Config) -> None:
    """What is trained on and what is judged by are the same boxes and answers."""
    world = world_of(files, task, model, held_out=str(files / f"{task}-train.json"))
    course, judged = world.course(world.first), world.task(world.first)
    right = []
    for row in range(0, judged.samples, 5):
        rows = np.asarray([row])
        feeds = judged.feeds(rows)
        targets = course.targets([row], course.source.frames([rows_of(judged)[row]]), feeds["attention_mask"])
        said = _mdetr(targets) if world.levels is None else _glip(targets, feeds["pixel_values"].shape[2:], world.levels)
        right.append(judged.score(rows, judged.predict(rows, said))[HEADLINE[task]][0])
    assert np.mean(right) == 1


HEADLINE = {"refcoco": "precision@1", "gqa": "accuracy", "coco": "image_ap50"}


def _mdetr(targets: Arrays) -> Arrays:
    """Outputs in which the second query has the box, and the answers."""
    made: dict[str, Any] = {"logits": np.zeros((1, 4, 40), np.float32), "boxes": np.full((1, 4, 4), 0.5, np.float32)}
    made["logits"][0, :, -1] = (9, -9, 9, 9)
    made["boxes"][0, 1] = targets["boxes"][0, 0]
    if "answer_types" in targets:
        kind = targets["answer_types"][0]
        made["answer_type"] = np.eye(len(GQA_TYPES))[[kind]]
        made |= {f"answer_{name}": np.eye(GQA_HEADS[name])[[targets["answers"][0]]] for name in (GQA_TYPES[kind],)}
        made |= {f"answer_{name}": np.zeros((1, GQA_HEADS[name])) for name in GQA_TYPES if f"answer_{name}" not in made}
    return made


def _glip(targets: Arrays, size: tuple[int, int], levels: int) -> Arrays:
    """Outputs in which the cell nearest to each box names its tokens and has it."""
    places = np.concatenate(anchors(*size, levels)).astype(np.float32)
    middles = (places[:, :2] + places[:, 2:]) / 2
    spans = targets["spans"][0]
    logits = np.full((1, len(places), spans.shape[1]), -12.0, np.float32)
    regression = np.zeros((1, len(places), 4), np.float32)
    for box, span in zip(to_pixels(targets["boxes"][0], size).astype(np.float32), spans, strict=True):
        cell = int(np.abs(middles[: size[0] * size[1] // 64] - (box[:2] + box[2:]) / 2).sum(1).argmin())
        logits[0, cell, span] = 12.0
        regression[0, cell] = encode(torch.from_numpy(box), torch.from_numpy(places[cell])).numpy()
    return {"logits": logits, "boxes": regression, "centerness": np.full((1, len(places)), 12.0, np.float32)}


def written(folder: Path, document: Json) -> Path:
    path = folder / "changed.json"
    path.write_text(json.dumps(document))
    return path


Change = Callable[[Json], object]


def _first(table: str, **values: Any) -> Change:
    return lambda document: document[table][0].update(values)


def _short(document: Json) -> None:
    document["images"] = document["images"][: 30 * EACH]
    document["annotations"] = document["annotations"][: 30 * EACH]


def _blank(document: Json) -> None:
    document["images"][0]["caption"], document["annotations"][0]["tokens_positive"] = " ", []


REFUSED: list[tuple[str, Config, Mapping[str, Any], Change | None, str]] = [
    ("gqa", GLIP, {}, None, "--task: gqa is nothing for a GLIP .*refcoco and coco"),
    ("coco", MDETR, {}, None, "--task: coco is nothing for an MDETR .*refcoco and gqa"),
    ("refcoco", GLIP, {"short": 32}, None, r"data\.short: GLIP takes images from 64 pixels on, not 32"),
    ("refcoco", MDETR, {"tokenizer": "nowhere.json"}, None, r"nowhere\.json: is no tokenizer"),
    ("refcoco", MDETR, {"train": "nowhere.json"}, None, r"nowhere\.json: cannot be read"),
    ("refcoco", MDETR, {"held_out": "nowhere.json"}, None, r"nowhere\.json: cannot be read"),
    ("gqa", MDETR, {"answers": "nowhere.json"}, None, r"nowhere\.json: cannot be read"),
    ("refcoco", MDETR, {"folder": "nowhere"}, None, r"nowhere/train0\.png: cannot be read as an image"),
    ("refcoco", MDETR, {}, _first("images", height=47), r"train0\.png: has 48 x 48 pixels, its annotations are for 48 x 47"),
    ("coco", GLIP, {}, _first("images", file_name="../train0.png"), r"'\.\./train0\.png' lies outside of the folder"),
    ("refcoco", MDETR, {}, _blank, r"changed\.json: images\[0\]\.caption: is blank"),
    ("refcoco", GLIP, {}, _blank, r"changed\.json: images\[0\]\.caption: is blank"),
    (
        "refcoco",
        MDETR,
        {},
        _short,
        r"changed\.json: 30 images leave 3 to learn the structure on, a batch has 4; at least 31 are needed",
    ),
    ("refcoco", MDETR, {}, _first("images", caption="a " * 60), r"changed\.json: .*: 62 tokens are more than the model's 39"),
    ("refcoco", MDETR, {}, _first("annotations", bbox=[900, 3, 5, 5]), r"expression 0: the box lies outside of 'train0\.png'"),
    ("gqa", MDETR, {}, _first("images", answer="a thousand"), r"images\[0\]\.answer: .*neither 'a thousand' nor 'unknown'"),
    ("coco", GLIP, {}, _first("categories", name="a " * 60), "tokens are more than the model's 40"),
]


def set_up(files: Path, task: str, model: Config, **more: Any) -> None:
    """As far as a run goes before it has a folder."""
    world = world_of(files, task, model, **more)
    world.fitted(model)
    world.check(world.first)


@pytest.mark.parametrize(("task", "model", "files_of", "change", "message"), REFUSED, ids=[row[-1][:40] for row in REFUSED])
def test_what_cannot_be_learned_from_is_refused_first(
    files: Path,
    tmp_path: Path,
    task: str,
    model: Config,
    files_of: Mapping[str, Any],
    change: Change | None,
    message: str,
) -> None:
    more = dict(files_of)
    if change is not None:
        document = annotated(files, task)
        change(document)
        more["train"] = str(written(tmp_path, document))
    with pytest.raises(InarchError, match=message):
        set_up(files, task, model, **more)


@every_case
def test_files_that_are_all_right_are_let_through(files: Path, task: str, model: Config) -> None:
    world = world_of(files, task, model)
    world.check(world.first)
    with pytest.raises(InarchError, match=f"there is no grounding on {task}"):
        world.check("grounding")


def test_two_files_with_other_categories(files: Path, tmp_path: Path) -> None:
    document = annotated(files, "coco")
    document["categories"].reverse()
    world = world_of(files, "coco", GLIP, held_out=str(written(tmp_path, document)))
    with pytest.raises(InarchError, match=r"changed\.json: has other categories than .*coco-train\.json"):
        world.check("detection")


def test_a_file_that_changes_is_read_again(files: Path, tmp_path: Path) -> None:
    document = annotated(files, "refcoco")
    train = written(tmp_path, document)
    config = validated(LearnConfig, {"model": "mdetr-tiny", "data": settings(files, "refcoco", train=str(train))}, "test")
    before = workshop.world_of(config.data, MDETR)
    assert workshop.world_of(config.data, MDETR) is before
    del document["images"][-1], document["annotations"][-1]
    written(tmp_path, document)
    after = workshop.world_of(config.data, MDETR)
    assert isinstance(before, FilesWorld)
    assert isinstance(after, FilesWorld)
    assert after.train.samples == len(document["images"])
    assert set(after.digests) == {str(train), *(config.data.files[1:])}


def test_a_tokenizer_may_be_a_folder(files: Path) -> None:
    world = world_of(files, "refcoco", MDETR)
    assert Path(world.settings.tokenizer).name == "tokenizer.json"
    folder = str(Path(world.settings.tokenizer).parent)
    beside = world_of(files, "refcoco", MDETR, tokenizer=folder)
    assert beside.digests[folder] == world.digests[world.settings.tokenizer]


@pytest.mark.parametrize("batch", [*range(1, 40), 10**9])
def test_the_least_number_of_images_is_the_least(batch: int) -> None:
    with pytest.raises(ValueError, match="at least") as refused:
        weights_part(batch, batch)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    assert weights_part(least, batch) >= batch
    with pytest.raises(ValueError, match=f"at least {least} are needed"):
        weights_part(least - 1, batch)


def test_detections_cannot_be_judged_without_pycocotools(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(InarchError, match="mAP needs pycocotools"):
        world_of(files, "coco", GLIP).check("detection")


def test_images_are_looked_at(files: Path, tmp_path: Path) -> None:
    """By their headers: of what is no image, and of what would not be read for lying elsewhere."""
    for name, content in (("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
    for place, message in (("text.png", "cannot be read as an image"), ("empty.png", "cannot be read as an image")):
        with pytest.raises(InarchError, match=message):
            check_image(tmp_path, ImageRow(id=1, file_name=place, height=1, width=1))
    for place in ("../train0.png", str(files / "train0.png")):
        with pytest.raises(InarchError, match="lies outside of the folder"):
            check_image(files, ImageRow(id=1, file_name=place, height=1, width=1))
    check_image(files, ImageRow(id=1, file_name="train0.png", height=1, width=1), sized=False)


def test_a_glips_texts_are_framed(files: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    core = Tokenizer.from_file(str(files / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 2)])
    core.save(str(tmp_path / "bare.json"))
    world = world_of(files, "refcoco", GLIP, tokenizer=str(tmp_path / "bare.json"))
    with pytest.raises(InarchError, match=r"bare\.json: puts 1 tokens around a text"):
        world.check("referring")


def test_where_nothing_names_a_box_the_whole_expression_does(files: Path, tmp_path: Path) -> None:
    """Blanks have no token; the released files' spans may be empty."""
    document = annotated(files, "refcoco")
    for number, annotation in enumerate(document["annotations"]):
        blank = document["images"][number]["caption"].index(" ")
        annotation["tokens_positive"] = [[], [[blank, blank + 1]], [[blank, blank + 1], [0, blank]]][number % 3]
        document["images"][number]["caption"] += "     "
    world = world_of(files, "refcoco", MDETR, train=str(written(tmp_path, document)))
    course = world.course("referring")
    frames = course.source.frames(rows_of(world.train)[:3])
    mask = world.train.feeds(np.arange(3))["attention_mask"]
    spans = course.targets([0, 1, 2], frames, mask)["spans"][:, 0]
    assert spans[:2].sum(1).tolist() == (mask[:2].sum(1) - 2).tolist()
    assert spans[2].tolist() == [place == 1 for place in range(mask.shape[1])]


def test_a_vocabulary_that_the_heads_have_no_room_for(files: Path, tmp_path: Path) -> None:
    answers = json.loads((files / "answers.json").read_text())
    answers["answer_obj"]["maybe"] = 3
    path = tmp_path / "more.json"
    path.write_text(json.dumps(answers))
    with pytest.raises(InarchError, match=r"more\.json: answer_obj has the class 3, the head 3 classes"):
        world_of(files, "gqa", MDETR, answers=str(path)).check("vqa")


def test_the_padding_of_a_roberta_is_its_own(files: Path) -> None:
    text = MDETR.text.model_copy(update={"family": "roberta"})
    config = MDETR.model_copy(update={"text": text})
    with pytest.raises(InarchError, match=r"tokenizer\.json: the padding token is 0, the model's 1"):
        world_of(files, "refcoco", config).fitted(config)


def test_a_model_is_fitted_to_words_and_questions(files: Path) -> None:
    small = MDETR.model_copy(update={"text": MDETR.text.model_copy(update={"vocabulary": 7})})
    world = world_of(files, "gqa", small)
    config = world.fitted(small)
    assert isinstance(config, MdetrConfig)
    assert config.text.vocabulary == world.tokenizer.vocabulary > 40
    assert (config.answers, config.answer_layer) == ("gqa", 0)
    released = MDETR.model_copy(update={"answers": "gqa", "decoder_layers": 3, "answer_layer": 1})
    kept = world_of(files, "gqa", released).fitted(released)
    assert isinstance(kept, MdetrConfig)
    assert kept.answer_layer == 1, "what answers are read from is the released model's"
    assert world_of(files, "refcoco", MDETR).fitted(MDETR) == MDETR


def test_other_kinds_splits_and_models(files: Path) -> None:
    world = world_of(files, "refcoco", MDETR)
    with pytest.raises(InarchError, match=r"there is no vqa on refcoco .*there is referring"):
        world.course("vqa")
    with pytest.raises(InarchError, match="refcoco has no split 'testA'"):
        world.task("referring", "testA")
    with pytest.raises(InarchError, match="referring/refcoco-train is set up for another model than this Glip"):
        world.course("referring").trainee(build(GLIP))
    with pytest.raises(InarchError, match="the model has None answers"):
        world_of(files, "gqa", MDETR).course("vqa").trainee(build(MDETR))
