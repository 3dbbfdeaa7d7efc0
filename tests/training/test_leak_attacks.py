"""The attacks read everything where it lies open, and nothing where there is nothing: a broken attack looks safe."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcmoe_node.leak.attacks import Probe, directions, next_tokens_from_gradients
from pcmoe_node.leak.floors import Share, most_frequent, share, unigram
from pcmoe_node.leak.measure import probed

ROWS, HIDDEN = 2000, 64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def documents(rows: int = ROWS, count: int = 20) -> Tensor:
    """The document of each row."""
    return torch.arange(rows) % count


def skewed(vocabulary: int, seed: int) -> Tensor:
    """Tokens of a text: a few of them come often."""
    weights = 1 / torch.arange(1, vocabulary + 1)
    return torch.multinomial(weights, ROWS, replacement=True, generator=generator(seed))


def gradients_of(head_VH: Tensor, norm_H: Tensor, next_R: Tensor) -> Tensor:
    """By autograd: of the cross-entropy after final norm and head, scaled as no host knows, at unknown states."""
    out_RH = torch.randn(len(next_R), head_VH.shape[1], generator=generator(5)).requires_grad_()
    normed_RH = torch.nn.functional.rms_norm(out_RH, (head_VH.shape[1],), norm_H)
    loss = torch.nn.functional.cross_entropy(normed_RH @ head_VH.T, next_R, reduction="sum")
    gradient_RH: Tensor = torch.autograd.grad(loss, out_RH)[0]
    unknown_R1: Tensor = 0.05 + torch.rand(len(next_R), 1, generator=generator(6))
    scaled_RH: Tensor = gradient_RH * unknown_R1
    return scaled_RH


def a_head(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Rows of very different length, and a final norm that isn't ones."""
    length_V1 = 0.2 + torch.rand(vocabulary, 1, generator=generator(2))
    head_VH = length_V1 * torch.randn(vocabulary, HIDDEN, generator=generator(1)) / 4
    return head_VH, 0.5 + torch.rand(HIDDEN, generator=generator(3))


@pytest.mark.parametrize("vocabulary", [40, 258, 5000])
def test_the_closed_form_reads_the_next_token_from_gradients_of_a_known_head(vocabulary: int) -> None:
    head_VH, norm_H = a_head(vocabulary)
    next_R = skewed(vocabulary, 4)
    guess_R = next_tokens_from_gradients(gradients_of(head_VH, norm_H, next_R), head_VH, norm_H)
    assert (guess_R == next_R).float().mean() >= 0.99


def test_the_closed_form_reads_no_more_than_the_floor_of_random_labels() -> None:
    head_VH, norm_H = a_head(258)
    gradients_RH = gradients_of(head_VH, norm_H, skewed(258, 4))
    unrelated_R = skewed(258, 9)
    guess_R = next_tokens_from_gradients(gradients_RH, head_VH, norm_H)
    assert_at_the_floor(share(guess_R == unrelated_R, documents()), unrelated_R)


def test_the_closed_form_reads_no_more_than_the_floor_with_a_head_it_does_not_know() -> None:
    head_VH, norm_H = a_head(258)
    next_R = skewed(258, 4)
    other_VH = torch.randn(258, HIDDEN, generator=generator(77))
    guess_R = next_tokens_from_gradients(gradients_of(head_VH, norm_H, next_R), other_VH, norm_H)
    found = share(guess_R == next_R, documents())
    assert found.value <= most_frequent(next_R, documents()).high


def one_hot(tokens_R: Tensor) -> Tensor:
    """Hidden states that are their token, turned and with a little noise."""
    turn_VH: Tensor = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator(11)))[0]
    return turn_VH[tokens_R] + 0.05 * torch.randn(len(tokens_R), HIDDEN, generator=generator(12))


def noise(tokens_R: Tensor) -> Tensor:
    return torch.randn(len(tokens_R), HIDDEN, generator=generator(13))


def by_probe(rows: Callable[[Tensor], Tensor], seed: int) -> tuple[Share, Tensor]:
    """What a probe reads that has learnt from the other documents; the truth."""
    tokens_R = skewed(HIDDEN, seed)
    rows_RH = rows(tokens_R)
    guess_R = probed(rows_RH, documents(), (rows_RH, tokens_R, documents()))
    return share(guess_R == tokens_R, documents()), tokens_R


def test_the_probe_finds_every_token_that_lies_open() -> None:
    found, _ = by_probe(one_hot, 8)
    assert found.value >= 0.99


def test_the_probe_reads_no_more_than_the_floor_from_noise() -> None:
    found, tokens_R = by_probe(noise, 8)
    assert found.value <= most_frequent(tokens_R, documents()).high


def test_the_probe_reads_no_more_than_the_floor_of_random_labels() -> None:
    rows_RH, unrelated_R = one_hot(skewed(HIDDEN, 8)), skewed(HIDDEN, 21)
    guess_R = probed(rows_RH, documents(), (rows_RH, unrelated_R, documents()))
    found = share(guess_R == unrelated_R, documents())
    assert found.value <= most_frequent(unrelated_R, documents()).high


def test_the_probe_learns_from_no_document_that_it_is_measured_on() -> None:
    """Rows that only their own document's other rows could explain stay unread."""
    tokens_R = documents(count=20)
    rows_RH = one_hot(tokens_R)
    guess_R = probed(rows_RH, documents(), (rows_RH, tokens_R, documents()))
    assert not (guess_R == tokens_R).any()


def test_a_probe_names_only_tokens_it_has_seen_even_from_one_row() -> None:
    probe = Probe.fit(torch.ones(1, 3), torch.tensor([7]))
    assert probe.guess(torch.zeros(2, 3)).tolist() == [7, 7]


def test_a_row_of_zeros_has_no_direction_and_harms_nothing() -> None:
    assert directions(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def assert_at_the_floor(found: Share, tokens_R: Tensor) -> None:
    """Not above what naming the most frequent token reaches; its interval meets that of guessing."""
    assert found.value <= most_frequent(tokens_R, documents()).high
    floor = unigram(tokens_R, documents())
    assert found.low <= floor.high


# ---- floors and intervals


def test_the_floors_of_a_known_text() -> None:
    tokens_R = torch.tensor([1, 1, 1, 2])
    assert most_frequent(tokens_R, torch.arange(4)).value == 0.75
    assert unigram(tokens_R, torch.arange(4)).value == pytest.approx(0.75**2 + 0.25**2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Documents differ: 30 of 20 rows each, whose own shares vary around 0.6."""
    document_R = torch.arange(30).repeat_interleave(20)
    covered = 0
    for seed in range(200):
        of_D = 0.6 + 0.3 * (torch.rand(30, generator=generator(seed)) - 0.5)
        hits_R = torch.rand(600, generator=generator(1000 + seed)) < of_D[document_R]
        found = share(hits_R, document_R)
        covered += found.low <= 0.6 <= found.high
    assert 180 <= covered <= 198


def test_rows_of_few_documents_have_a_wider_interval_than_rows_of_many() -> None:
    hits_R = torch.arange(ROWS) % 200 < 100
    few, many = torch.arange(ROWS) // 100, torch.arange(ROWS)
    assert width(share(hits_R, few)) > 2 * width(share(hits_R, many))


def width(found: Share) -> float:
    return found.high - found.low


def test_the_same_rows_always_have_the_same_interval() -> None:
    hits_R = noise(torch.arange(ROWS))[:, 0] > 0
    assert share(hits_R, documents()) == share(hits_R, documents())


def test_what_always_succeeds_has_no_width() -> None:
    assert share(torch.ones(10), documents(10, 5)) == Share(1.0, 1.0, 1.0)
