"""What benchmarks/mutations.py breaks, and the tests that notice."""

from __future__ import annotations

from typing import NamedTuple

ATTACKS = "tests/training/attacks/test_attacks.py::"
CLOSEST = "tests/training/attacks/test_closest_first.py::"
APGD = "tests/training/attacks/test_apgd.py::"
LOSSES = "tests/training/attacks/test_losses.py::"
EVALUATE = "tests/training/evaluation/test_evaluate.py::"
PARTS = "tests/training/evaluation/test_parts.py::"
RIVALS = "tests/training/attacks/test_rivals.py::"
WINDOWS = "tests/training/attacks/test_square_windows.py::"
STUDIES = "tests/training/evaluation/test_studies.py::"
COUNT = "tests/training/evaluation/test_checks_count.py::"
OUTPUTS = "tests/training/evaluation/test_outputs.py::"
PAIRS = "tests/core/test_pairs.py::"
EXPORT = "tests/export/test_export.py::"
CORRUPTIONS = "tests/training/data/test_corruptions.py::"
SWITCH = "tests/core/test_switch.py::"
TOWER_LOSSES = "tests/training/attacks/test_tower_losses.py::"
FLOOR = "tests/training/evaluation/test_floor.py::"
DIAL = "tests/training/mixture/test_dial.py::"
COMPARE = "tests/cli/test_compare.py::"
CHECKLIST = "tests/core/test_checklist.py::"
INT8 = "tests/export/test_int8.py::"
QUANTISED = "tests/training/evaluation/test_quantised.py::"


class Mutation(NamedTuple):
    """``old`` becomes ``new`` in ``file``, and one of ``tests`` fails."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "cross entropy of raw 2C logits instead of the fold",
        "training/attacks/losses.py",
        "return F.cross_entropy(climbable_logits(raw, fold), labels",
        "return F.cross_entropy(raw, labels",
        ((APGD + "test_the_safe_sink_fools_the_raw_attack_and_not_ours"),),
    ),
    Mutation(
        "success judged on logits before the fold",
        "training/attacks/criteria.py",
        "return ~right(fold_logits(raw, fold), labels)\n\n    return success\n\n\ndef unsure",
        "return ~right(raw, labels)\n\n    return success\n\n\ndef unsure",
        ((APGD + "test_the_safe_sink_fools_the_raw_attack_and_not_ours"),),
    ),
    Mutation(
        "the last image instead of the best",
        "training/attacks/base.py",
        "chosen = index[better]",
        "better = torch.ones_like(better)\n        chosen = index[better]",
        ((APGD + "test_square_needs_no_gradient_and_finds_what_it_should"),),
    ),
    Mutation(
        "eps not enforced",
        "training/attacks/ball.py",
        "        eps = self._inner_radius(images)\n",
        "        return candidates.clamp(0, 1)\n        eps = self._inner_radius(images)\n",
        ((ATTACKS + "test_projection_stays_inside_ball_and_pixels"),),
    ),
    Mutation(
        "pixels not clamped to [0, 1]",
        "training/attacks/ball.py",
        "max=images + eps).clamp(0, 1)",
        "max=images + eps)",
        ((ATTACKS + "test_projection_stays_inside_ball_and_pixels"),),
    ),
    Mutation(
        "8-bit images rounded to the nearest, out of the ball",
        "training/attacks/ball.py",
        "levels.round().clamp(-most, most)",
        "levels.round()",
        ((ATTACKS + "test_eight_bit_projection_gives_eight_bit_images_inside"),),
    ),
    Mutation(
        "l1 projected onto the ball and then onto the box",
        "training/attacks/ball.py",
        "return torch.minimum(torch.maximum(shrunk, -images), 1 - images)",
        "return shrunk",
        ((ATTACKS + "test_l1_projection_onto_ball_and_box_is_the_nearest_point"),),
    ),
    Mutation(
        "l2 steps of saturated gradients vanish",
        "training/attacks/ball.py",
        "scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(_TINY)",
        "scaled = gradient",
        ((STUDIES + "test_l2_steps_keep_their_length_where_the_loss_is_saturated"),),
    ),
    Mutation(
        "NaN gradients are followed",
        "training/attacks/base.py",
        "return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).contiguous()",
        "return gradient.contiguous()",
        ((STUDIES + "test_nan_gradients_do_not_push_an_image_out_of_the_ball"),),
    ),
    Mutation(
        "eval mode not set",
        "training/attacks/frozen.py",
        "    model.eval()\n",
        "",
        ((ATTACKS + "test_model_is_left_as_it_was"),),
    ),
    Mutation(
        "weights get gradients",
        "training/attacks/frozen.py",
        "parameter.requires_grad_(False)",
        "pass",
        ((ATTACKS + "test_weights_need_no_gradient_while_attacked"),),
    ),
    Mutation(
        "modes not restored after an attack",
        "training/attacks/frozen.py",
        "            module.training = training\n",
        "            pass\n",
        (
            (ATTACKS + "test_model_is_left_as_it_was"),
            (ATTACKS + "test_modes_are_restored_after_an_error"),
        ),
    ),
    Mutation(
        "APGD's checkpoints one step late",
        "training/attacks/apgd.py",
        "math.ceil(round(place * steps, 9))",
        "math.ceil(place * steps)",
        ((APGD + "test_checkpoints_are_those_of_the_paper"),),
    ),
    Mutation(
        "APGD never halves its steps",
        "training/attacks/apgd.py",
        "        self.step_size[self.halved] /= 2\n",
        "",
        ((APGD + "test_steps_are_halved_where_they_bring_too_little"),),
    ),
    Mutation(
        "APGD keeps three quarters of its last move",
        "training/attacks/apgd.py",
        "_MOMENTUM = 0.75",
        "_MOMENTUM = 0.25",
        ((APGD + "test_four_steps_are_those_of_the_algorithm_worked_out_by_hand"),),
    ),
    Mutation(
        "APGD restarts from the best place along the gradient of the last one",
        "training/attacks/apgd.py",
        "        self.gradient[self.halved] = self.best_gradient[self.halved]\n",
        "",
        ((APGD + "test_four_steps_are_those_of_the_algorithm_worked_out_by_hand"),),
    ),
    Mutation(
        "APGD goes on from the last place and not from the best",
        "training/attacks/apgd.py",
        "        self.current[self.halved] = self.best[self.halved]\n",
        "",
        ((APGD + "test_four_steps_are_those_of_the_algorithm_worked_out_by_hand"),),
    ),
    Mutation(
        "a start that is given is not where Square begins",
        "training/attacks/square.py",
        "candidates = start\n",
        "candidates = origin\n",
        ((APGD + "test_a_start_is_where_the_attack_begins"),),
    ),
    Mutation(
        "transfer shows the clean image",
        "training/attacks/transfer.py",
        "shown = ball.project(images, found)",
        "shown = images",
        ((APGD + "test_transfer_shows_what_it_found_on_the_surrogate"),),
    ),
    Mutation(
        "targets among the originals only",
        "ducat_serve/pairs.py",
        'return (labels,) if fold == "none" else (labels, labels + num_classes)',
        "return (labels,)",
        ((APGD + "test_targeted_looks_at_dummies_too"),),
    ),
    Mutation(
        "NaN logits count as robust",
        "training/attacks/criteria.py",
        " & ~logits.isnan().any(dim=1)",
        "",
        ((APGD + "test_nan_logits_count_as_wrong"),),
    ),
    Mutation(
        "margin to all logits, the label's own included",
        "training/attacks/losses.py",
        "others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)",
        "others = logits",
        ((LOSSES + "test_margin_says_how_far_a_right_decision_is_from_a_wrong_one"),),
    ),
    Mutation(
        "DLR divided by the gap to the second logit",
        "training/attacks/losses.py",
        "(ordered[:, 0] - ordered[:, 2] + 1e-12)",
        "(ordered[:, 0] - ordered[:, 1] + 1e-12)",
        ((LOSSES + "test_dlr_is_the_published_formula"),),
    ),
    Mutation(
        "targeted DLR towards the folded class only",
        "training/attacks/losses.py",
        "return (_pick(raw, targets) - _pick(logits, labels)) / (scale + 1e-12)",
        "return (_pick(logits, targets % logits.shape[1]) - _pick(logits, labels)) / (scale + 1e-12)",
        ((LOSSES + "test_targeted_dlr_is_the_published_formula_towards_a_class_or_its_dummy"),),
    ),
    Mutation(
        "the pair's weight is not detached",
        "ducat_serve/pairs.py",
        "(temperature * pair.detach())",
        "(temperature * pair + 0.1 * pair)",
        ((LOSSES + "test_pair_margin_against_its_formula_for_every_temperature"),),
    ),
    Mutation(
        "lse-fold computed as the max-fold",
        "ducat_serve/pairs.py",
        '    if fold == "max":\n',
        "    if True:\n",
        ((PAIRS + "test_folds_against_literal_formulas"),),
    ),
    Mutation(
        "fold recovery reads a dummy as the class after",
        "ducat_serve/pairs.py",
        "return logits.argmax(dim=-1) % (logits.shape[-1] // 2)",
        "return (logits.argmax(dim=-1) + (logits.argmax(dim=-1) >= logits.shape[-1] // 2)) % (logits.shape[-1] // 2)",
        ((PAIRS + "test_max_fold_is_recovery"),),
    ),
    Mutation(
        "dummy mass is that of the originals",
        "ducat_serve/pairs.py",
        "chunk(2, dim=-1)[1].sum(dim=-1)",
        "chunk(2, dim=-1)[0].sum(dim=-1)",
        ((PAIRS + "test_dummy_mass_and_share"),),
    ),
    Mutation(
        "lse-fold that overflows when exported",
        "ducat_serve/pairs.py",
        "return larger + F.softplus(-(original - dummy).abs())",
        "return torch.logaddexp(original, dummy)",
        ((EXPORT + "test_lse_fold_of_huge_logits_is_exact_when_exported"),),
    ),
    Mutation(
        "the exported graph folds by max in any case",
        "export/graph.py",
        "logits = fold_logits(raw, self.fold)\n        return",
        'logits = fold_logits(raw, "none" if self.fold == "none" else "max")\n        return',
        ((EXPORT + "test_every_fold_and_channel_count"),),
    ),
    Mutation(
        "parity gate that lets any logits through",
        "export/parity.py",
        "logits_off <= tolerance and mass_off",
        "mass_off",
        ((EXPORT + "test_the_gate_refuses_a_wrong_graph_and_leaves_no_file"),),
    ),
    Mutation(
        "parity gate that does not compare labels",
        "export/parity.py",
        " and wrong == 0 and consistent",
        "",
        ((EXPORT + "test_the_gate_sees_a_label_that_forgets_the_dummies"),),
    ),
    Mutation(
        "legacy attack that knows the pairs",
        "training/evaluation/legacy.py",
        'won = misclassified("none")',
        "won = misclassified(runner.model.fold)",
        ((STUDIES + "test_legacy_stops_at_the_labels_own_dummy"),),
    ),
    Mutation(
        "rejection attack that need not be unflagged",
        "training/attacks/criteria.py",
        " & ~(score(raw) > threshold)",
        "",
        ((APGD + "test_an_unflagged_criterion_needs_both"),),
    ),
    Mutation(
        "dummy mass measured on images that do not hide",
        "training/evaluation/detection.py",
        "return torch.where(still_fooled, torch.minimum(before, detector.score(raw)), before)",
        "return before",
        ((STUDIES + "test_dummy_mass_detects_only_those_who_do_not_hide"),),
    ),
    Mutation(
        "what checks and studies break does not count",
        "training/evaluation/examples.py",
        "        self.record(index[unbroken], raw[unbroken], BY_CHECK)\n",
        "",
        ((COUNT + "test_squares_of_a_sanity_check_count_where_gradients_mislead"),),
    ),
    Mutation(
        "what a check breaks in a larger ball counts",
        "training/evaluation/sanity.py",
        "            raw = replace(runner, ball=ball).attack(",
        "            raw = examples.check(replace(runner, ball=ball), ",
        ((COUNT + "test_what_a_larger_ball_breaks_does_not_count"),),
    ),
    Mutation(
        "the images that only a check broke are not kept",
        "training/evaluation/examples.py",
        "onlooker = None if self.images is None else Onlooker(self._keep_unbroken)",
        "onlooker = None",
        ((COUNT + "test_squares_of_a_sanity_check_count_where_gradients_mislead"),),
    ),
    Mutation(
        "sanity checks that always pass",
        "training/evaluation/sanity.py",
        "passed=counts[stronger[0]] <= counts[after[0]] + _SLACK",
        "passed=True",
        ((STUDIES + "test_masked_gradients_are_called_out"),),
    ),
    Mutation(
        "sanity checks with five images of slack",
        "training/evaluation/sanity.py",
        "_SLACK = 1",
        "_SLACK = 5",
        ((STUDIES + "test_one_image_of_slack_is_one_image"),),
    ),
    Mutation(
        "cost counted by the batch, not by the image",
        "training/evaluation/runner.py",
        "cost.gradient_steps += len(inputs[0])",
        "cost.gradient_steps += 1",
        ((PARTS + "test_the_cost_is_what_was_really_asked"),),
    ),
    Mutation(
        "resumed attacks run again",
        "training/evaluation/attack_run.py",
        "in attacks[len(self.results) :]",
        "in attacks",
        ((PARTS + "test_a_resumed_evaluation_repeats_no_attack_and_gives_the_same_report"),),
    ),
    Mutation(
        "intervals that are not Wilson's",
        "training/evaluation/wilson.py",
        "+ _Z**2 / 4)",
        ")",
        ((EVALUATE + "test_wilson_interval_against_published_values"),),
    ),
    Mutation(
        "the curve forgets what broke at a smaller eps",
        "training/evaluation/evaluate.py",
        "            examples.inherit(smaller)\n",
        "            pass\n",
        ((OUTPUTS + "test_a_curve_never_rises_and_keeps_what_broke_at_smaller_eps"),),
    ),
    Mutation(
        "corruptions one severity off",
        "training/data/corruptions.py",
        "start = (severity - 1) * len(self.labels)",
        "start = (severity % 5) * len(self.labels)",
        ((CORRUPTIONS + "test_arrays_by_family_and_severity"),),
    ),
    Mutation(
        "a screening called a worst case",
        "ducat_serve/report.py",
        "not any(needed <= names",
        "not any(needed",
        ((COMPARE + "test_of_the_suites_only_the_quick_one_is_a_screening"),),
    ),
    Mutation(
        "images of 8 bits in l2 are cut towards the original",
        "training/attacks/ball.py",
        "return levels.sign() * (size + low).floor()",
        "return levels.sign() * size.floor()",
        ((ATTACKS + "test_images_of_eight_bits_are_found_that_use_the_budget"),),
    ),
    Mutation(
        "images of 8 bits in l2 are rounded up without looking at the ball",
        "training/attacks/ball.py",
        "fits = _norm((size + middle).floor(), order) <= most",
        "fits = most > 0",
        ((ATTACKS + "test_eight_bit_projection_gives_eight_bit_images_inside"),),
    ),
    Mutation(
        "a resumed evaluation forgets the attacked images",
        "training/evaluation/state.py",
        "keeper.restore(kept)",
        "keeper.restore({})",
        ((OUTPUTS + "test_a_resumed_evaluation_keeps_the_images_of_before"),),
    ),
    Mutation(
        "an answer of NaN counts as flagged",
        "training/evaluation/detection.py",
        "score = detector.score(found).nan_to_num(nan=-torch.inf)",
        "score = detector.score(found)",
        ((STUDIES + "test_nan_answers_to_adversarial_images_count_as_wrong_and_lose_no_report"),),
    ),
    Mutation(
        "three attacks on one loss count as three losses",
        "ducat_serve/checklist.py",
        "return len(set[str]().union(*(LOSSES.get(name, {name}) for name in names)))",
        "return len(list(names))",
        ((CHECKLIST + "test_attacks_of_one_loss_are_one_loss"),),
    ),
    Mutation(
        "closest-first begins with the farthest",
        "training/attacks/closest_first.py",
        "argsort(descending=True, stable=True)]",
        "argsort(stable=True)]",
        ((CLOSEST + "test_a_round_begins_with_the_closest_and_ends_where_two_blocks_held"),),
    ),
    Mutation(
        "a round of closest-first ends at the first block that holds",
        "training/attacks/closest_first.py",
        "and so_far < held:",
        "and so_far < 1:",
        ((CLOSEST + "test_copies_of_an_example_are_searched_at_once_in_no_more_rows_than_the_batch_has"),),
    ),
    Mutation(
        "closest-first counts what fell before as fallen now",
        "training/attacks/closest_first.py",
        "index = (~self.best.success).nonzero().squeeze(1)",
        "index = (self.best.loss > -torch.inf).nonzero().squeeze(1)",
        ((CLOSEST + "test_a_round_goes_on_while_images_fall"),),
    ),
    Mutation(
        "closest-first aims at one target in every copy",
        "training/attacks/closest_first.py",
        "rank = (copy // columns)",
        "rank = (0 * copy)",
        ((CLOSEST + "test_targets_go_down_the_ranking_of_the_best_image"),),
    ),
    Mutation(
        "closest-first climbs one loss in every copy",
        "training/attacks/closest_first.py",
        "targets=copy)",
        "targets=0 * copy)",
        ((CLOSEST + "test_each_loss_is_climbed_by_its_own_copy"),),
    ),
    Mutation(
        "closest-first never aims at dummies",
        "training/attacks/closest_first.py",
        "raw.gather(1, dummy) > raw.gather(1, target)",
        "raw.gather(1, dummy) < -torch.inf",
        ((CLOSEST + "test_targets_go_down_the_ranking_of_the_best_image"),),
    ),
    Mutation(
        "of rival searches the worse half goes on",
        "training/attacks/rivals.py",
        "order = loss.argsort(descending=True, stable=True)",
        "order = loss.argsort(stable=True)",
        ((RIVALS + "test_of_each_example_the_half_that_is_ahead_goes_on"),),
    ),
    Mutation(
        "rivals go on after one of them succeeded",
        "training/attacks/rivals.py",
        "if rivals is None or not bool(success.any()):",
        "if True:",
        ((RIVALS + "test_apgd_gives_its_steps_to_the_search_that_is_ahead"),),
    ),
    Mutation(
        "images with a gradient are left out, and not those without",
        "training/attacks/base.py",
        "return gradient.flatten(1).any(dim=1)",
        "return ~gradient.flatten(1).any(dim=1)",
        ((ATTACKS + "test_where_there_is_no_gradient_apgd_spends_no_steps"),),
    ),
    Mutation(
        "the window that pays for a bump keeps what it held",
        "training/attacks/square_windows.py",
        "    emptied.fill(delta, torch.zeros_like(bump))\n",
        "",
        ((WINDOWS + "test_the_second_window_is_emptied_and_the_first_holds_what_both_held"),),
    ),
    Mutation(
        "l1 bumps as flat as those of l2",
        "training/attacks/square_windows.py",
        '"l1": 4}',
        '"l1": 2}',
        ((WINDOWS + "test_a_bump_is_that_of_the_reference"),),
    ),
    Mutation(
        "flagging judged at the strictest threshold only",
        "training/evaluation/detection.py",
        "correct_or_flagged=(lowest > threshold)",
        "correct_or_flagged=(lowest > min(thresholds.values()))",
        ((STUDIES + "test_a_laxer_threshold_lets_through_at_least_as_many"),),
    ),
    Mutation(
        "a failed sanity check has no consequence",
        "training/evaluation/evaluate.py",
        "if plan.on_doubt and (doubt",
        "if not plan.on_doubt and (doubt",
        ((STUDIES + "test_slow_attacks_follow_where_a_sanity_check_fails"),),
    ),
    Mutation(
        "no slow attacks where too few images are right for the checks",
        "training/evaluation/evaluate.py",
        "    if plan.sanity and not sanity and bool(examples.right.any()):",
        "    if False:",
        ((STUDIES + "test_few_images_say_nothing_about_masking_so_slow_attacks_follow"),),
    ),
    Mutation(
        "a switch that ignores its threshold",
        "ducat_serve/switch.py",
        "    a = 1 / (1 + switch.threshold)\n    robust = ",
        "    a = 0.5\n    robust = ",
        ((SWITCH + "test_against_the_literal_rule"),),
    ),
    Mutation(
        "the floor by raw margins instead of mapped ones",
        "ducat_serve/switch.py",
        "    q = mapped_log_posterior(dummy, switch).exp()\n    index",
        "    q = dummy.softmax(dim=-1)\n    index",
        ((SWITCH + "test_a_certain_robust_tower_wins_against_every_standard_tower"),),
    ),
    Mutation(
        "attacks climb the fold itself, whose gradient ends at the switch",
        "training/attacks/losses.py",
        "return tower_losses.soft_logits(raw, fold) if isinstance(fold, Switch) else fold_logits(raw, fold)",
        "return fold_logits(raw, fold)",
        ((TOWER_LOSSES + "test_both_towers_get_a_gradient_where_both_are_sure"),),
    ),
    Mutation(
        "the standard tower is pulled on after it has given way",
        "training/attacks/tower_losses.py",
        ".clamp(max=_FLIPPED)",
        "",
        ((TOWER_LOSSES + "test_a_target_is_won_by_the_standard_tower_flipping_and_no_more"),),
    ),
    Mutation(
        "the floor is what attacks on the robust tower alone leave, whatever others found",
        "training/evaluation/floor.py",
        "proven = int((carried & right).sum())",
        "proven = int(carried.sum())",
        ((FLOOR + "test_what_breaks_both_towers_counts_against_the_floor"),),
    ),
    Mutation(
        "a switch that is fitted on test images",
        "ducat_serve/library/mixing.py",
        "choose_images(data.val, ",
        "choose_images(data.test, ",
        (("tests/cli/test_mix.py::test_it_is_fitted_on_val_and_on_nothing_else"),),
    ),
    Mutation(
        "a setting whose clean accuracy is the standard tower's",
        "training/mixture/dial.py",
        "right = torch.where(lead < threshold, by_standard, by_robust)",
        "right = by_standard",
        ((DIAL + "test_figures_are_those_of_the_fold"),),
    ),
    Mutation(
        "the floor of a setting on clean images only",
        "training/mixture/dial.py",
        "for d in answers.attacked]).amin(dim=0)",
        "for d in answers.attacked[:1]]).amin(dim=0)",
        ((DIAL + "test_figures_are_those_of_the_fold"),),
    ),
    Mutation(
        "the head is quantised too",
        "export/quantise.py",
        "if self.is_weighted(node) and node not in heads]",
        "if self.is_weighted(node)]",
        ((INT8 + "test_head_fold_and_preprocessing_stay_in_float32"),),
    ),
    Mutation(
        "int8 calibrated on clean images alone",
        "ducat_serve/library/calibrating.py",
        "attacked = torch.arange(0, len(images), 2)",
        "attacked = torch.arange(0)",
        ((INT8 + "test_calibration_is_on_train_images_half_of_them_attacked"),),
    ),
    Mutation(
        "rounding without a straight-through gradient",
        "training/evaluation/quantised_operators.py",
        "        return gradients[0]\n\n\ndef _quantize",
        "        return torch.zeros_like(gradients[0])\n\n\ndef _quantize",
        ((QUANTISED + "test_values_are_rounded_and_gradients_are_not"),),
    ),
    Mutation(
        "an int8 file judged by its copy",
        "training/evaluation/quantised.py",
        "def forward(_ctx: Any, _source: Tensor, values: Tensor) -> Tensor:\n        return values.clone()",
        "def forward(_ctx: Any, _source: Tensor, values: Tensor) -> Tensor:\n        return _source.clone()",
        ((QUANTISED + "test_values_are_the_files_where_the_copy_says_something_else"),),
    ),
    Mutation(
        "an int8 label that is not the best logit is let through",
        "export/agreement.py",
        "    if contradictions:",
        "    if contradictions < 0:",
        ((INT8 + "test_a_file_that_contradicts_itself_is_refused"),),
    ),
)
