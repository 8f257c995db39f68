"""What benchmarks/mutations.py breaks of training, and the tests that notice."""

from __future__ import annotations

from mutation import Mutation

SCHEDULES = "tests/training/test_schedules.py::"
OBJECTIVES = "tests/training/test_objectives.py::"
MEMORY = "tests/training/test_less_memory.py::"
OPTIMIZER = "tests/training/test_optimizer.py::"
START = "tests/training/run/test_start.py::"
PERTURBATION = "tests/training/test_weight_perturbation.py::"
VALIDATION = "tests/training/test_validation.py::"
BATCHES = "tests/training/test_batches.py::"
COLLAPSE = "tests/training/test_collapse.py::"
FAST = "tests/training/test_fast_training.py::"
METRICS = "tests/training/run/test_metrics.py::"
DATASET = "tests/training/run/test_dataset.py::"

TRAINING = (
    Mutation(
        "the rate of an epoch's first step in all of them",
        "training/step.py",
        "self.config.learning_rate(epoch, step, self.batches.steps)",
        "self.config.learning_rate(epoch, 0, self.batches.steps)",
        ((SCHEDULES + "test_the_optimizer_gets_the_rate_of_its_step"),),
    ),
    Mutation(
        "dummies are trained from the first epoch on",
        "training/step.py",
        "return self._with_dummies if self.config.is_dummy_phase(epoch) else self._plain",
        "return self._with_dummies",
        ((OBJECTIVES + "test_before_the_dummy_phase_every_mode_is_the_plain_method"),),
    ),
    Mutation(
        "every portion of a batch counts as the whole",
        "training/step.py",
        "weight = self.processes.weight(portion, self.config.batch_size)",
        "weight = 1.0",
        ((MEMORY + "test_the_gradient_is_that_of_the_whole_batch"),),
    ),
    Mutation(
        "a resumed run begins with a fresh optimizer",
        "training/trainer.py",
        "            self.step.optimizer.load_state_dict(self.state.optimizer)\n",
        "",
        ((OPTIMIZER + "test_adamw_is_resumed_exactly"),),
    ),
    Mutation(
        "statistics below a head that is trained alone move",
        "training/trainer.py",
        "                    module.eval()\n",
        "                    pass\n",
        ((OPTIMIZER + "test_a_frozen_backbone_stays_and_the_head_moves"),),
    ),
    Mutation(
        "checkpoints that were not written before a death are never written",
        "training/trainer.py",
        "if self._has_lost_models():",
        "if False:",
        ((START + "test_models_and_rows_agree_wherever_a_run_is_killed"),),
    ),
    Mutation(
        "an average that warms up at its last decay",
        "training/average.py",
        "return min(decay, (1 + updates) / (10 + updates))",
        "return decay",
        ((SCHEDULES + "test_the_warm_decay"),),
    ),
    Mutation(
        "weights are perturbed down the loss",
        "training/weight_perturbation.py",
        "weight.add_(length * weight.grad)",
        "weight.sub_(length * weight.grad)",
        ((PERTURBATION + "test_the_gradient_is_that_at_the_perturbed_weights"),),
    ),
    Mutation(
        "both passes of a perturbation draw their own masks",
        "training/weight_perturbation.py",
        "with self._buffers_kept(), generators_kept(device):",
        "with self._buffers_kept():",
        ((PERTURBATION + "test_both_passes_drop_the_same"),),
    ),
    Mutation(
        "clean images are taught to the dummies",
        "training/objectives/ducat.py",
        "DUMMY_WEIGHT_BENIGN = 0.25",
        "DUMMY_WEIGHT_BENIGN = 1.0",
        ((OBJECTIVES + "test_loss_is_the_published_formula"),),
    ),
    Mutation(
        "the divergence of TRADES the other way round",
        "training/objectives/trades.py",
        'F.kl_div(q, p, reduction="none"',
        'F.kl_div(p, q, reduction="none"',
        ((OBJECTIVES + "test_loss_is_the_published_formula"),),
    ),
    Mutation(
        "the runner-up of MART may be the label itself",
        "training/objectives/mart.py",
        "q.scatter(1, index, -torch.inf).amax(dim=1)",
        "q.amax(dim=1)",
        ((OBJECTIVES + "test_loss_is_the_published_formula"),),
    ),
    Mutation(
        "guidance is strong one epoch early",
        "training/objectives/guided.py",
        "if epoch > _LATE * self.epochs",
        "if epoch >= _LATE * self.epochs",
        ((OBJECTIVES + "test_guidance_is_four_times_as_strong_in_the_last_epochs"),),
    ),
    Mutation(
        "posteriors are flattened where they should be sharpened",
        "training/objectives/consistency.py",
        "/ _TEMPERATURE)",
        "* _TEMPERATURE)",
        ((OBJECTIVES + "test_loss_is_the_published_formula"),),
    ),
    Mutation(
        "logit pairing with the mean of both cross entropies",
        "training/objectives/pairing.py",
        "return 2 * self.classification(",
        "return self.classification(",
        ((OBJECTIVES + "test_loss_is_the_published_formula"),),
    ),
    Mutation(
        "a milestone drops the rate one epoch early",
        "training/schedules.py",
        "sum(epoch > milestone",
        "sum(epoch >= milestone",
        ((SCHEDULES + "test_steps_are_what_they_were"),),
    ),
    Mutation(
        "the cosine ends at its middle",
        "training/schedules.py",
        "math.cos(math.pi * done)",
        "math.cos(math.pi * done / 2)",
        ((SCHEDULES + "test_cosine_is_half_a_wave_in_single_steps"),),
    ),
    Mutation(
        "the ramp of eps begins at 0",
        "training/schedules.py",
        "(step + 1) / steps) / ramp",
        "step / steps) / ramp",
        ((SCHEDULES + "test_eps_grows_from_zero_in_equal_parts_and_stays"),),
    ),
    Mutation(
        "validation by one step where training takes one",
        "training/validation.py",
        "\n_STEPS = 10\n",
        "\n_STEPS = 1\n",
        (
            (
                VALIDATION
                + "test_validation_finds_the_worst_case_of_a_linear_model_whatever_steps_training_takes"
            ),
        ),
    ),
    Mutation(
        "the legacy attack stops after one step",
        "training/validation.py",
        "            steps=self.attack.steps,\n",
        "            steps=1,\n",
        ((VALIDATION + "test_the_legacy_measure_takes_all_steps_and_every_image_is_judged_once"),),
    ),
    Mutation(
        "every epoch has the same order",
        "training/batches.py",
        'stream(self.seed, "order", epoch)',
        'stream(self.seed, "order")',
        ((BATCHES + "test_an_epoch_visits_no_image_twice_and_orders_differ"),),
    ),
    Mutation(
        "balanced batches prefer the common class",
        "training/batches.py",
        "1.0 / torch.bincount(labels).double()[labels]",
        "torch.bincount(labels).double()[labels]",
        ((BATCHES + "test_balanced_batches_have_every_class_as_often"),),
    ),
    Mutation(
        "every image of a batch is flipped",
        "training/batches.py",
        "device=device) < 0.5",
        "device=device) < 1.5",
        ((BATCHES + "test_flip_is_drawn_for_each_image"),),
    ),
    Mutation(
        "all crops of a batch have one row",
        "training/batches.py",
        "top = torch.randint(2 * crop_padding + 1, (count, 1)",
        "top = torch.randint(2 * crop_padding + 1, (1, 1)",
        ((BATCHES + "test_crop_gives_shifted_windows_of_the_padded_image_each_its_own"),),
    ),
    Mutation(
        "a run at chance goes on for long",
        "training/collapse.py",
        "PATIENCE = {AT_CHANCE: 3,",
        "PATIENCE = {AT_CHANCE: 9,",
        ((COLLAPSE + "test_what_ends_a_run"),),
    ),
    Mutation(
        "epochs are judged while eps still grows",
        "training/collapse.py",
        "return 1 + max(config.eps_ramp or 0, lag)",
        "return 1",
        ((COLLAPSE + "test_what_ends_a_run"),),
    ),
    Mutation(
        "the inner attack of TRADES begins on the image",
        "training/attacks/inner.py",
        "images + _NEAR * noise",
        "images + 0 * noise",
        ((OBJECTIVES + "test_where_the_inner_attack_starts"),),
    ),
    Mutation(
        "N-FGSM with half of its noise",
        "training/attacks/inner.py",
        "_N_FGSM_NOISE = 2.0",
        "_N_FGSM_NOISE = 1.0",
        ((FAST + "test_n_fgsm_is_the_published_step"),),
    ),
    Mutation(
        "guided attacks begin at a corner of the whole ball",
        "training/attacks/inner.py",
        "images + sign * self.ball.eps / 2",
        "images + sign * self.ball.eps",
        ((OBJECTIVES + "test_the_step_of_guided_training"),),
    ),
    Mutation(
        "epochs before the dummies compete with those after",
        "training/run/metrics.py",
        "if row.epoch >= (config.ducat_start or 0)",
        "if row.epoch >= 0",
        ((METRICS + "test_the_row_that_is_shown_is_that_of_the_kept_weights"),),
    ),
    Mutation(
        "epochs that different attacks measured compete",
        "training/run/metrics.py",
        "if row.val_attack == rows[-1].val_attack",
        "if row.val_attack is not None",
        ((METRICS + "test_epochs_compete_only_where_one_attack_measured_them"),),
    ),
    Mutation(
        "a folder that changed is evaluated all the same",
        "training/run/dataset.py",
        '    if "test" in held_out:',
        '    if "test" in ():',
        ((DATASET + "test_images_that_were_renamed_since_training_are_no_test_images"),),
    ),
)
