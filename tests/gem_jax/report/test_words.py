"""The sentences of a report say the numbers of its summary, and nothing where the truth is unknown."""

from gem_jax.report.page import render
from gem_jax.report.words import story


def measures(ne, regret, bayes, calibration, **changes):
    return {
        "ne": ne, "regret_ne": regret, "bayes_ne": bayes, "closed": (1 - ne) / (1 - bayes), "auc": 0.7, "gauc": 0.7,
        "calibration": 1.0, "true_calibration": calibration, "num_examples": 9000, "num_positives": 300, "by_domain": {},
        "calibration_curve": [],
    } | changes  # fmt: skip


DOMAINS = {
    "feed": measures(0.88, 0.13, 0.75, 0.98),
    "search & co": measures(0.8, 0.05, 0.75, 1.049),
    "stories": measures(0.97, 0.17, 0.8, 1.21, num_positives=1234),
    "empty": dict.fromkeys(measures(0.9, 0.1, 0.8, 1.0)) | {"num_positives": 0},
}
SUMMARY = {
    "examples": 250_000,
    "oracle_ne": {"click": 0.7},
    "eval": {"click": measures(0.87, 0.1, 0.75, 0.94, by_domain=DOMAINS)},
}


def test_what_is_told():
    learnt, left, hidden, domains, calibrated = story(SUMMARY)["click"]
    assert "60%" in learnt and "0.750 (Bayes)" in learnt and "model is at 0.870" in learnt  # 1 - .1 / .25
    assert "40%" in left and "250,000" in left
    assert "0.700" in hidden and "17%" in hidden  # (.75 - .7) / (1 - .7)
    assert domains.endswith("first: stories 15%, feed 48%, search & co 80%.")
    assert "0.94 of the true" in calibrated
    assert "off by more than 5%: stories 1.21 (1,234 positives in the test)." in calibrated


def test_a_calibrated_model_without_an_oracle():
    near = {name: DOMAINS[name] for name in ("feed", "search & co")}
    summary = {"eval": {"click": measures(0.87, 0.1, 0.75, 1.0, by_domain=near)}}
    sentences = story(summary)["click"]
    assert len(sentences) == 4 and sentences[-1].endswith("to within 5% of them in every domain.")


def test_one_domain_and_no_truth():
    one = measures(0.87, 0.1, 0.75, 1.01, by_domain={"all": DOMAINS["feed"]})
    assert (
        story({"eval": {"click": one}})["click"][-1]
        == "Calibration: predictions add up to 1.01 of the true probabilities."
    )
    unknown = measures(0.87, None, 0.75, None) | {"bayes_ne": None}
    assert story({"eval": {"click": unknown}}) == {} and story({}) == {}


def test_the_page_has_them_escaped():
    page = render("run", SUMMARY, [])
    assert "<h2>In words</h2>" in page and "search &amp; co 80%" in page
    assert "In words" not in render("run", {"eval": {"click": DOMAINS["feed"] | {"regret_ne": None}}}, [])
