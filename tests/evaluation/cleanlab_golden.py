"""What cleanlab finds in drawn scores: `pip install cleanlab`, then `python -m tests.evaluation.cleanlab_golden`.

cleanlab 2.9 brings pandas with it, so that it is not one of the packages of the tests.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")


def draw(num_labels, seed, *, share=0.1, missing=False):
    """Scores of a fair model, and labels of which a share was changed; `missing`: no text has the last label."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((400, num_labels))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    is_changed = rng.random(len(labels)) < share
    labels = np.where(is_changed, rng.integers(0, num_labels, len(labels)), labels)
    return scores, labels % (num_labels - 1) if missing else labels


def equal_scores():
    """Coarse scores: some are equal to their mean, and to one another."""
    scores = np.tile([[0.7, 0.3], [0.7, 0.3], [0.3, 0.7]], (40, 1))
    return scores, np.tile([0, 1, 1], 40)


def cases():
    return {
        "two labels": draw(2, 0),
        "three labels": draw(3, 1),
        "ten labels": draw(10, 2, share=0.3),
        "a label that no text has": draw(4, 3, missing=True),
        "no label changed": draw(3, 4, share=0.0),
        "equal scores": equal_scores(),
    }


def found_by_cleanlab(scores, labels):
    from cleanlab.filter import find_label_issues

    ranked = find_label_issues(
        labels, scores, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    return ranked.tolist()


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: found_by_cleanlab(*case) for name, case in cases().items()}) + "\n")
