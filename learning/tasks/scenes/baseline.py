"""How well questions are answered by who does not look: what every model is to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from inarch.learning.tasks.scenes.language import STOP
from inarch.learning.tasks.scenes.texts import Texts

Words = tuple[int, ...]

_BEGINNING = 2


def question_only(train_texts: Texts, test_texts: Texts) -> float:
    """Accuracy of the commonest training answer to a question's words.

    A question that training does not have gets the commonest answer to those that begin with the same two words, or else the
    commonest of all; among equally common ones, the first.

    Args:
        train_texts: questions, says the answers.
        test_texts: questions to answer.
    """
    counts: dict[Words, Counter[int]] = {}
    for question, answer in _asked(train_texts):
        for key in (question, question[:_BEGINNING], ()):
            counts.setdefault(key, Counter())[answer] += 1
    best = {key: min(counter, key=lambda answer: (-counter[answer], answer)) for key, counter in counts.items()}
    right = [best.get(question, best.get(question[:_BEGINNING], best[()])) == answer for question, answer in _asked(test_texts)]
    return sum(right) / len(right)


def _asked(texts: Texts) -> Iterator[tuple[Words, int]]:
    """Every question's words and its answer."""
    ids, answers = texts.ids.reshape(-1, texts.ids.shape[-1]), texts.answers.reshape(-1)
    for tokens, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        yield tuple(token for token in tokens if token > STOP), answer
