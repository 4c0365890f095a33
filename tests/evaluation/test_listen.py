import base64
import csv
import html.parser
import io
import json
from collections import Counter

import numpy as np
import pyloudnorm
import pytest
import soundfile
from scipy.stats import binomtest, permutation_test

from command_line import run
from partita.errors import PartitaError
from partita.evaluation.listen import (
    KEY,
    PAGE,
    Clip,
    Material,
    degraded,
    gather_clips,
    make_orders,
    write_listening_test,
)
from partita.evaluation.listen_results import Answer, Listener, analyze, bradley_terry, listening_results, win_table
from partita.metrics.significance import holm, sign_flip_test
from partita.recipe.plan import load_recipe
from partita.storage.audio_file import write_audio
from partita.system.system import System

RATE = 8000


class Script(html.parser.HTMLParser):
    """The data of a page, as a browser finds it."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.text, self.links = False, "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inside = attributes.get("id") == "data"
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.text += data if self.inside else ""


def page_data(folder):
    return json.loads(Script((folder / PAGE).read_text()).text)


def tone(frequency, seconds=1.0, amplitude=0.3, rate=RATE):
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)[None]


def material(systems=("flow-secret", "codec-secret", "base-secret"), items=4):
    clips = {
        name: [Clip(tone(200 + 50 * i + 7 * n, 1.0, 0.1 * (n + 1)), RATE) for i in range(items)]
        for n, name in enumerate(systems)
    }
    return Material(clips, [f"item{i}" for i in range(items)], [f"prompt {i} </script>" for i in range(items)])


@pytest.fixture
def partita(monkeypatch, capfd):
    return lambda *arguments: run(*arguments, monkeypatch=monkeypatch, capfd=capfd)


def audio_folder(path, names, captions=True, suffix=".wav"):
    for i, name in enumerate(names):
        write_audio(path / f"{name}{suffix}", tone(300 + 40 * i, rate=16000), 16000)
        if captions:
            (path / f"{name}.txt").write_text(f"tone {i}\n")
    return path


@pytest.fixture
def toy_export(toy_recipe, tmp_path):
    System(load_recipe(toy_recipe)).save(tmp_path / "export")
    return tmp_path / "export"


def answer_file(folder, path, listener, judge, catch_right=True, order=0):
    """What the page saves, of a listener who decides by ``judge(left system, right system)``."""
    data, key = page_data(folder), json.loads((folder / KEY).read_text())
    answers = []
    for sides in data["orders"][order]:
        left, right = (data["clips"][i]["id"] for i in sides)
        a, b = key["clips"][left], key["clips"][right]
        if a["system"] == b["system"]:
            answer = "left" if b["degraded"] == catch_right else "right"
        else:
            answer = judge(a["system"], b["system"])
        answers.append({"left": left, "right": right, "answer": answer, "seconds": 3.0})
    path.write_text(json.dumps({"format": 1, "test": data["test"], "listener": listener, "answers": answers}))
    return path


# The page


def test_the_page_holds_every_clip_once_equally_loud_and_no_name(tmp_path):
    page, notes = write_listening_test(material(), tmp_path, catch=2)
    assert notes == []
    text, data, key = page.read_text(), page_data(tmp_path), json.loads((tmp_path / KEY).read_text())
    assert "secret" not in text
    assert "item0" not in text
    assert "degraded" not in text
    assert not Script(text).links  # nothing is fetched
    assert [clip["id"] for clip in data["clips"]] == sorted(key["clips"])
    assert len(data["clips"]) == 3 * 4 + 2
    assert len({clip["audio"] for clip in data["clips"]}) == len(data["clips"])
    assert data["clips"][0]["prompt"].endswith("</script>")
    for clip in data["clips"]:
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["audio"])))
        assert pyloudnorm.Meter(rate).integrated_loudness(audio) == pytest.approx(-23, abs=0.1)
        at = key["clips"][clip["id"]]
        if not at["degraded"]:  # and it is the clip that the key says
            number, item = key["systems"].index(at["system"]), key["items"].index(at["item"])
            assert np.abs(np.fft.rfft(audio)).argmax() == 200 + 50 * item + 7 * number


def test_the_same_seed_makes_the_same_test_and_another_another(tmp_path):
    pages = [
        write_listening_test(material(), tmp_path / str(i), seed=seed)[0].read_text()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(("systems", "items", "trials"), [(2, 10, None), (3, 4, None), (4, 5, None), (3, 8, 10)])
def test_orders_are_balanced(systems, items, trials):
    orders = make_orders(systems, items, trials, [(0, 1), (1, 2)], seed=3)
    assert len({str(order) for order in orders}) == len(orders)
    pairs = systems * (systems - 1) // 2
    over_all, over_items, left_over_all = Counter(), Counter(), Counter()
    for order in orders:
        catches = [sides for sides in order if sides[0][0] == sides[1][0]]
        assert len(catches) == 2
        assert all({left[2], right[2]} == {"", "degraded"} for left, right in catches)
        compared = [sides for sides in order if sides not in catches]
        assert len(compared) == (trials or pairs * items)
        assert all(left[1] == right[1] for left, right in order)
        met = Counter(frozenset((left[0], right[0])) for left, right in compared)
        assert len(met) == pairs
        assert max(met.values()) - min(met.values()) <= 1
        assert len({(frozenset((left[0], right[0])), left[1]) for left, right in compared}) == len(compared)
        left_of = Counter((left[0], right[0]) for left, right in compared)
        assert all(abs(left_of[a, b] - left_of[b, a]) <= 2 for a, b in left_of)
        over_all += met
        left_over_all += left_of
        over_items += Counter((frozenset((left[0], right[0])), left[1]) for left, right in compared)
    assert max(over_all.values()) - min(over_all.values()) <= 1
    assert max(over_items.values()) - min(over_items.values()) <= 1
    assert all(abs(left_over_all[a, b] - left_over_all[b, a]) <= 2 for a, b in left_over_all)


def test_a_degraded_clip_is_dull_and_noisy():
    clip = Clip(tone(500) + tone(2000), RATE)
    worse = degraded(clip, 0).audio[0]
    spectrum = np.abs(np.fft.rfft(worse)) ** 2
    assert spectrum[2000] < 0.01 * spectrum[500]
    assert spectrum[500] / spectrum.sum() == pytest.approx(0.5, abs=0.05)


def test_silent_clips_are_said_and_never_a_catch(tmp_path):
    made = material(("a", "b"), 2)
    made.clips["a"][0] = Clip(np.zeros((1, RATE), np.float32), RATE)
    _, notes = write_listening_test(made, tmp_path / "x", catch=1)
    assert len(notes) == 1
    assert "a, item0: silent" in notes[0]
    made.clips["b"][0] = made.clips["b"][1] = made.clips["a"][0]
    _, notes = write_listening_test(made, tmp_path / "y", catch=3)
    assert notes[-1].startswith("catch trials: 1 instead of 3")
    assert len(page_data(tmp_path / "y")["orders"][0]) == 3


@pytest.mark.parametrize(
    ("wrong", "word"), [({"catch": -1}, "catch trials"), ({"trials": 2}, "trials must be at least 3")]
)
def test_numbers_must_fit_the_material(wrong, word, tmp_path):
    with pytest.raises(PartitaError, match=word):
        write_listening_test(material(), tmp_path, **wrong)


# Where clips come from


def test_folders_are_compared_by_file_names(tmp_path):
    a = audio_folder(tmp_path / "a", ["x", "y"])
    b = audio_folder(tmp_path / "b", ["x", "y"], captions=False, suffix=".flac")
    made = gather_clips([str(a), str(b)], duration=0.5)
    assert list(made.clips) == ["a", "b"]
    assert (made.items, made.prompts) == (["x", "y"], ["tone 0", "tone 1"])
    assert made.clips["b"][1].audio.shape == (1, 8000)
    assert made.clips["b"][1].sample_rate == 16000


def test_systems_generate_for_the_same_prompts(toy_export, toy_recipe, tmp_path):
    other = System(load_recipe(toy_recipe, ["seed=7"]))
    other.save(tmp_path / "other")
    (tmp_path / "prompts.txt").write_text("tone 3\n\ntone 5\n")
    made = gather_clips([str(toy_export), str(tmp_path / "other")], prompts=str(tmp_path / "prompts.txt"), seed=4)
    assert made.prompts == ["tone 3", "tone 5"]
    np.testing.assert_array_equal(
        made.clips["other"][1].audio, other.generate(["tone 5"], duration=1.0, seed=5)[0].numpy()
    )
    made = gather_clips([str(toy_export), str(tmp_path / "other")], prompts="3", duration=0.5)
    assert len(made.prompts) == 3
    assert all(text.startswith("tone ") for text in made.prompts)
    assert [clip.audio.shape for clip in made.clips["export"]] == [(1, 2000)] * 3


def test_a_system_is_compared_with_recordings_by_their_captions(toy_export, tmp_path):
    recorded = audio_folder(tmp_path / "recorded", ["x", "y", "z"])
    made = gather_clips([str(recorded), str(toy_export)], duration=0.5)
    assert made.prompts == ["tone 0", "tone 1", "tone 2"]
    assert [len(clips) for clips in made.clips.values()] == [3, 3]
    (recorded / "y.txt").unlink()
    with pytest.raises(PartitaError, match=r"put y\.txt"):
        gather_clips([str(recorded), str(toy_export)])


def test_sources_that_do_not_fit_are_one_message(partita, tmp_path):
    a, b = (str(audio_folder(tmp_path / name, ["x", "y"])) for name in "ab")
    fewer = str(audio_folder(tmp_path / "fewer", ["x", "w"]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("x.wav", "y.wav"):
        (tmp_path / "broken" / name).write_bytes(b"RIFFnothing")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "three.txt").write_text("1\n2\n3\n")
    target = tmp_path / "test"
    for arguments, word in (
        ([a], "two systems or more"),
        ([a, a], "named twice"),
        ([a, fewer], f"{fewer} has no y"),
        ([a, tmp_path / "empty"], "neither a system nor audio files"),
        ([a, tmp_path / "broken"], "x.wav: cannot be read as audio"),
        ([a, "nowhere"], "neither a folder"),
        ([a, b, "--prompts", tmp_path / "none.txt"], "holds no prompts"),
        ([a, b, "--prompts", tmp_path / "three.txt"], "3 prompts, but"),
        ([a, b, "--prompts", "missing.txt"], "there is no file missing.txt"),
        ([a, b, "--duration", "0"], "positive number"),
        ([a, b, "--catch", "-1"], "catch trials"),
        ([a, b, "--loudness", "5"], "LUFS"),
    ):
        status, text = partita("listen", "make", *arguments, "-o", target)
        assert (status, word in text, "Traceback" in text) == (2, True, False), text
        assert not target.exists()
    assert partita("listen", "make", a, b, "-o", target)[0] == 0
    status, text = partita("listen", "make", a, b, "-o", target)
    assert (status, "already" in text) == (2, True)


# What the answers say


def test_strengths_of_two_systems_are_their_wins():
    np.testing.assert_allclose(bradley_terry(np.array([[0, 7.5], [2.5, 0]])), [0.75, 0.25], atol=1e-8)
    np.testing.assert_allclose(bradley_terry(np.array([[0, 4.0], [0, 0]])), [1, 0])


def test_strengths_are_where_expected_wins_are_those_observed():
    # The condition of the maximum of the likelihood (Hunter, 2004).
    wins = np.random.default_rng(0).integers(1, 20, (5, 4, 4)).astype(float) * (1 - np.eye(4))
    strengths = bradley_terry(wins)
    odds = strengths[:, :, None] / (strengths[:, :, None] + strengths[:, None])
    np.testing.assert_allclose(((wins + wins.swapaxes(1, 2)) * odds).sum(-1), wins.sum(-1), rtol=1e-6)


def listeners(strengths, count, trials, seed=0):
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        answers = []
        for _ in range(trials):
            a, b = (int(i) for i in draw.choice(len(strengths), 2, replace=False))
            answers.append(Answer(a, b, float(draw.random() < strengths[a] / (strengths[a] + strengths[b]))))
        made.append(Listener(str(number), answers))
    return made


def test_known_strengths_are_found_again():
    truth = [0.5, 0.3, 0.15, 0.05]
    results = analyze(listeners(truth, 60, 100), ["a", "b", "c", "d"])
    assert [row.system for row in results.systems] == ["a", "b", "c", "d"]
    for row, strength in zip(results.systems, truth, strict=True):
        assert row.strength == pytest.approx(strength, abs=0.03)
        assert row.low <= strength <= row.high
        assert row.high - row.low < 0.1
    assert len(results.pairs) == 6
    assert all(row.corrected < 0.05 for row in results.pairs)


def test_equal_systems_do_not_differ():
    results = analyze(listeners([1, 1, 1], 20, 30), ["a", "b", "c"])
    assert all(row.corrected > 0.05 for row in results.pairs)
    assert all(row.low < 1 / 3 < row.high for row in results.systems)


def test_ties_are_half_a_win_and_not_in_the_test():
    answers = [Answer(0, 1, 1.0)] * 5 + [Answer(1, 0, 0.5)] * 4
    np.testing.assert_array_equal(win_table(answers, 2), [[0, 7], [2, 0]])
    results = analyze([Listener(str(i), [answer]) for i, answer in enumerate(answers)], ["a", "b"])
    (pair,) = results.pairs
    assert (pair.wins, pair.ties, pair.losses, pair.listeners) == (5, 4, 0, 9)
    assert pair.p == pair.corrected == 0.0625
    assert results.systems[0].strength == pytest.approx(7 / 9)


def test_one_listener_says_nothing_of_others():
    results = analyze([Listener("x", [Answer(0, 1, 1.0)] * 30), Listener("y", [])], ["a", "b"])
    assert results.systems[0].low is None
    assert np.isnan([results.pairs[0].p, results.pairs[0].corrected]).all()


def opinionated(draw, count, trials, spread):
    """Listeners who each prefer one of two systems that are equal among all, by so much."""
    odds = 1 / (1 + np.exp(-spread * draw.standard_normal(count)))
    answers = [[Answer(0, 1, float(draw.random() < p)) for _ in range(trials)] for p in odds]
    return [Listener(str(i), own) for i, own in enumerate(answers)]


def test_systems_that_are_equal_among_listeners_differ_as_rarely_as_the_level_says():
    """At 5 %, of 200 tests at most 12; over trials it would be 63."""
    draw = np.random.default_rng(0)
    ps = [analyze(opinionated(draw, 10, 20, 1.0), ["a", "b"]).pairs[0].p for _ in range(200)]
    assert np.mean(np.array(ps) < 0.05) <= 0.06


@pytest.mark.parametrize("count", [3, 12])
def test_intervals_of_strengths_hold_what_all_listeners_prefer(count):
    """Of 95 % in 150, 134 or fewer by chance in one of 300."""
    draw, held = np.random.default_rng(1), 0
    for _ in range(150):
        row = analyze(opinionated(draw, count, 10, 1.0), ["a", "b"]).systems[0]
        held += row.low <= 0.5 <= row.high
    assert held > 134


def test_listeners_who_agree_by_chance_leave_some_doubt():
    agreeing = [Listener(str(i), [Answer(0, 1, 1.0)] * 7 + [Answer(0, 1, 0.0)] * 3) for i in range(3)]
    row = analyze(agreeing, ["a", "b"]).systems[0]
    assert row.low < 0.5 < 0.7 < row.high


def test_p_values_are_those_of_scipy():
    draw = np.random.default_rng(0)
    for number in (2, 4, 9):
        differences = draw.integers(-6, 7, number)
        expected = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=2**number)
        assert sign_flip_test(differences) == pytest.approx(expected.pvalue)
    for wins, losses in ((1, 0), (3, 3), (9, 2), (2, 30), (150, 110)):
        assert sign_flip_test([1] * wins + [-1] * losses) == pytest.approx(binomtest(wins, wins + losses).pvalue)
    assert sign_flip_test([]) == sign_flip_test([0, 0]) == 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_sums_that_are_equal_count_though_fractions_are_rounded():
    """No choice of signs of three halves and four ones has a sum nearer to zero than a half."""
    assert sign_flip_test([1, -0.5, 0, -1, -0.5, 1, 0, -0.5, 1, 0]) == 1
    wholes = [2, 1, 2, -2, -1, -1, -3, -3, -1, 3]
    for parts in (3, 7):
        assert sign_flip_test([whole / parts for whole in wholes]) == pytest.approx(sign_flip_test(wholes))


def test_from_clips_to_results(partita, tmp_path):
    a, b, c = (str(audio_folder(tmp_path / name, ["x", "y", "z"])) for name in ("good", "fair", "poor"))
    folder = tmp_path / "test"
    status, text = partita("listen", "make", a, b, c, "-o", folder, "--catch", "2", "--question", "Better?")
    assert status == 0, text
    rank = ["good", "fair", "poor"]
    files = [
        answer_file(
            folder, tmp_path / f"{i}.json", f"n{i}", lambda x, y: "left" if rank.index(x) < rank.index(y) else "right",
            order=i,
        )
        for i in range(3)
    ]  # fmt: skip
    files.append(answer_file(folder, tmp_path / "bad.json", "deaf", lambda x, y: "right", catch_right=False))
    status, text = partita("listen", "results", folder, *files)
    assert status == 0, text
    assert "not counted: deaf, who failed 2 of 2 catch trials" in text
    with (folder / "pairs.csv").open() as file:
        pairs = {(row["first"], row["second"]): row for row in csv.DictReader(file)}
    assert pairs["good", "fair"]["wins"] == pairs["good", "poor"]["wins"] == "9"
    assert float(pairs["good", "poor"]["p"]) == 2 / 2**3  # three listeners, however many answers
    assert float(pairs["good", "poor"]["corrected"]) == 6 / 2**3
    with (folder / "systems.csv").open() as file:
        assert [row["system"] for row in csv.DictReader(file)] == rank
    assert "| good | fair | 9 | 0 | 0 | 3 | 0.2500 | 0.7500 |" in (folder / "results.md").read_text()
    assert "<td>good</td>" in (folder / "results.html").read_text()
    status, text = partita("listen", "results", folder, *files, "--allowed", "2")
    assert "listeners: 4; answers: 36" in text
    assert "4 listeners cannot show a difference at the 5 % level" in text
    status, text = partita("listen", "results", folder, files[0])
    assert "one listener: the results say nothing about the preferences of other listeners" in " ".join(text.split())


def test_answers_that_cannot_count_are_named(partita, tmp_path):
    folder, other = tmp_path / "test", tmp_path / "other"
    write_listening_test(material(), folder, catch=1)
    write_listening_test(material(), other, seed=1)
    good = answer_file(folder, tmp_path / "good.json", "anna", lambda x, y: "tie")
    elsewhere = answer_file(other, tmp_path / "elsewhere.json", "bert", lambda x, y: "tie")
    content = json.loads(good.read_text())

    def changed(name, **values):
        (tmp_path / name).write_text(json.dumps(content | values))
        return tmp_path / name

    answers = content["answers"]
    (tmp_path / "half.json").write_text(good.read_text()[:100])
    (tmp_path / "list.json").write_text("[1]")
    for path, word in (
        (tmp_path / "missing.json", "no such file"),
        (tmp_path / "half.json", "cannot be read as answers"),
        (tmp_path / "list.json", "not a file of answers"),
        (elsewhere, "another listening test"),
        (changed("unknown.json", answers=[{**answers[0], "left": "?"}]), "is damaged"),
        (changed("vote.json", answers=[{**answers[0], "answer": "both"}]), "is damaged"),
        (changed("twice.json", answers=answers[:1] * 2), "is damaged"),
        (changed("differs.json", answers=[{**answer, "answer": "left"} for answer in answers]), "'anna'"),
        (changed("none.json", listener="carl", answers=[]), "answered no catch trial"),
    ):
        beside = [good] if "anna" in word else []
        status, text = partita("listen", "results", folder, *beside, path)
        assert (status, word in text, "Traceback" in text) == (2, True, False), text
    status, text = partita("listen", "results", tmp_path, good)
    assert (status, "no listening test" in text) == (2, True), text
    # A save halfway, and the whole one later, are one listener.
    results = listening_results(folder, [good, changed("early.json", answers=answers[:3])])
    assert [len(listener.answers) for listener in results.listeners] == [12]
