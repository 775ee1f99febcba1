"""What every metric of ``metrics.jsonl`` means. The tracker refuses a name that is not explained here.

A line of the file is one object: ``{"record": "episode" | "step" | "validation", "episode": ..., "step": ...,
"stage": ..., <metrics>}``. A share lies in [0, 1]; a metric without cases (accuracy of no response) is null, never 0.
"""

from __future__ import annotations

EPISODE = {
    "queries/effective": "share of queries whose first responses y1 are neither all correct nor all incorrect (Fig. 2)",
    "queries/all_correct": "share of queries whose y1 are all correct",
    "queries/all_incorrect": "share of queries whose y1 are all incorrect",
    "accuracy/first": "mean correctness of y1 (pass@1 on training queries, sampled)",
    "reward/mean": "mean reward of the groups that advantages are computed on, after Forced Rethinking (of every "
    "rollout: also of groups that dynamic sampling drops); the price of tokens is subtracted (reward.token_price)",
    "reward/correctness": "the same of their correctness alone",
    "reflection/share": "share of y1 that reflect by themselves (a reflection word; see rethink.contains_reflection)",
    "reflection/accuracy_with": "accuracy of the y1 that reflect; null if none does",
    "reflection/accuracy_without": "accuracy of the y1 that do not reflect; null if all do",
    "rethink/eligible": "share of y1 that could be forced: finished, not empty, room left (and, with "
    "rethink.skip_reflective, no reflection of their own)",
    "rethink/forced": "share of y1 that were forced to rethink",
    "rethink/kept": "share of y1 with a kept rethought trajectory, which takes their place (placement replace) or "
    "joins the group (append)",
    "rethink/no_answer": "share of forced responses whose second look gives no boxed answer of its own; null if none",
    "rethink/trained": "share of the kept trajectories that a step of this episode trained on, by GRPO and NLL; ssr, "
    "filter and dynamic sampling drop those of unanimous groups (advantage 0); null if none was kept",
    "rethink/wrong_to_right": "share of forced responses: first answer wrong, final answer right; null if none",
    "rethink/right_to_wrong": "share of forced responses: first answer right, final answer wrong",
    "rethink/right_to_right": "share of forced responses: right both times",
    "rethink/wrong_to_wrong": "share of forced responses: wrong both times",
    "advantages/before": "histogram {edges, counts} of the advantages of all samples of the episode, whatever is "
    "dropped later (Fig. 6, before)",
    "advantages/after": "histogram {edges, counts} of the advantages that were trained on (Fig. 6, after selection)",
    "replay/effective_before": "share of the episode's samples with a non-zero advantage, whatever is dropped later; "
    "with reward.token_price those of groups that agree in correctness do not count, here and below",
    "replay/effective_after": "share of the trained samples with a non-zero advantage; null if every step was skipped",
    "replay/share": "share of the trained samples that came from the buffer",
    "replay/batch_fill": "trained samples by those that the episode's batches are for (queries_per_episode x "
    "rollout.group_size): 1 is full batches, above 1 has trajectories that rethink.placement=append added",
    "replay/unfilled": "groups by which the episode falls short of queries_per_episode: dynamic sampling met its "
    "bound (replay.max_rollouts) or the last query; 0 in the other modes",
    "replay/buffer_size": "samples in the buffer at the end of the episode",
    "replay/age_mean": "mean age of the replayed samples, in episodes; null if none",
    "replay/age_max": "largest age of a replayed sample, in episodes; null if none",
    "replay/skipped_steps": "steps without a sample, fresh or stored, that has an advantage or is imitated: no update",
    "rollout/rounds": "rollouts of this episode (more than 1 with dynamic sampling only)",
    "rollout/responses": "responses generated: y1 and forced continuations",
    "rollout/tokens": "tokens generated (the forced trigger is not counted)",
    "rollout/tokens_per_second": "generated tokens by second of generation, all ranks together",
    "rollout/length_mean": "mean length of y1, tokens",
    "rollout/empty": "first responses without any visible text",
    "rollout/truncated": "responses cut at the token limit",
    "images/distinct": "distinct images of the episode's fresh queries",
    "images/decoded": "image files read and preprocessed in this episode, all ranks together; those of earlier "
    "episodes are held while there is room",
    "images/encoded": "images through the policy's vision tower in this episode, all ranks together: distinct ones of "
    "each forward pass, or of the episode while the tower is frozen; a vLLM engine's own are not in it",
    "grader/failures": "responses that the grader could not judge (error, timeout); they count as wrong",
    "grader/no_answer": "responses without a boxed answer",
    "gap/mean": "mean abs log-prob difference between engine and trainer over the tokens of effective y1 (mode grpo: "
    "of all y1), nats; with top_p < 1 it holds the engine's renormalisation too",
    "gap/max": "largest such difference, nats",
    "canary/gap": "mean abs log-prob difference on the probe that follows the weight sync, nats; null if not checked",
    "canary/usual": "the same after the first sync of the run, nats; at least a tenth of what rounding explains",
    "tokens/generated": "tokens generated since the start of the run",
    "time/rollout": "seconds of generating y1",
    "time/grade": "seconds of grading",
    "time/rethink": "seconds of Forced Rethinking, its generation and grading included",
    "time/logprobs": "seconds of recomputing the behaviour policy's log-probs; 0 where the update's own are they",
    "time/train": "seconds of forward, backward and optimiser",
    "time/sync": "seconds of giving the new weights to the engine",
    "time/episode": "seconds of the whole episode",
}

STEP = {
    "loss/total": "the loss whose gradient was taken",
    "loss/policy": "its policy term (GRPO); about 0 on-policy, so watch the gradient instead",
    "loss/nll": "the NLL of the step's kept rethinking trajectories, before its coefficient; null if it has none. "
    "Those of unanimous groups (advantage 0) are dropped by ssr and filter before it; a replayed one pays it again",
    "loss/nll_weight": "weight of a token under the NLL against that of a policy token at abs(A) = 1, means over the "
    "step, the coefficient included (rethink.nll_scale); null without NLL",
    "loss/kl": "the KL estimate to the reference, before its coefficient; null if no reference is used",
    "policy/entropy": "mean entropy of the next-token distribution at trained tokens, nats",
    "policy/ratio_mean": "mean importance ratio of the current to the behaviour policy",
    "policy/ratio_max": "largest importance ratio",
    "policy/clip_fraction": "share of trained tokens whose ratio is clipped: with objective clip they carry no "
    "gradient, with cispo one of clipped weight",
    "policy/approx_kl": "mean of (ratio - 1 - log ratio): KL from the behaviour policy, nats per token",
    "policy/grad_norm": "norm of the gradient before clipping",
    "importance/mean": "mean truncated importance weight (trainer against engine); null if the correction is off",
    "importance/truncated": "share of trained tokens whose weight hit the cap",
    "batch/samples": "samples trained on",
    "batch/tokens": "response tokens trained on",
    "batch/replayed": "samples that came from the buffer",
    "batch/rethought": "samples that are kept rethinking trajectories",
    "batch/images": "images that went through the vision tower: distinct ones of a micro-batch, summed over "
    "micro-batches and ranks",
    "optim/lr": "learning rate of this step",
}

VALIDATION = {
    "validation/accuracy": "greedy accuracy on the validation split (Fig. 5)",
    "validation/low": "lower end of its 95 % Wilson interval",
    "validation/high": "upper end of its 95 % Wilson interval",
    "validation/queries": "number of validation queries",
    "validation/reflection": "share of the greedy responses that reflect by themselves",
    "validation/length_mean": "mean length of the greedy responses, tokens",
}

OVERLAP = {
    "overlap/weight_lag": "episodes by which the weights that wrote the episode are older than those that its updates "
    "start from: 1, and 0 for the first episode of a stage and the first one after a resume",
    "overlap/effective_sample_size": "of the episode's sampled tokens, as a share of them: (sum w)^2 / (n sum w^2) of "
    "their truncated importance weights w; 1 if all are equal; null if none was scored",
    "overlap/truncated": "share of these tokens whose weight hit the cap (grpo.importance_cap)",
    "overlap/waited": "seconds for which training waited for the next episode's rollouts",
}

RECORDS = {"episode": EPISODE, "step": STEP, "validation": VALIDATION, "overlap": OVERLAP}

COORDINATES = {
    "record": "which kind of line: episode, step or validation; overlap with rollout.overlap only",
    "stage": "name of the stage",
    "episode": "episode, from 1, counted over all stages; 0 is before training",
    "step": "optimiser updates made so far, over all stages",
    "seconds": "wall-clock seconds since the run started, pauses excluded",
}

ROLLOUT_COLUMNS = {
    "episode": "episode, from 1",
    "stage": "name of the stage",
    "sample_id": "<episode>/<qid>/<index in the group>",
    "qid": "id of the query",
    "category": "kind of question",
    "level": "difficulty, 0 if the data set has none",
    "question": "the question's text",
    "gold": "the gold answer",
    "images": "image paths",
    "pass": "first: y1; forced: the whole trajectory y1 + trigger + y2",
    "text": "the response",
    "tokens": "its length, the trigger included",
    "finished": "ended with EOS",
    "correct": "the grader's verdict",
    "extracted": "the answer that the grader found",
    "grade_reason": "how the verdict was reached",
    "reflects": "contains a reflection of its own (never looks at the forced trigger)",
    "reward": "reward; null for a trajectory that was not kept and for a y1 that gave way",
    "advantage": "advantage; null in the same cases (groups that dynamic sampling drops have theirs)",
    "replays": "times this sample was drawn from the buffer in this episode",
    "trigger": "kind of the forced trigger; null for y1",
    "first_text": "y1 of a forced trajectory",
    "first_tokens": "tokens of y1 that stay as sampled in a forced trajectory",
    "trigger_tokens": "forced tokens: the trigger, and before it the end of y1 where the seam changes it",
    "first_correct": "correctness of y1 of a forced trajectory",
    "kept": "the trajectory took its place in the group",
}


def to_markdown() -> str:
    """The glossary as a page (``rethinker glossary``)."""
    sections = {
        "Where a line stands": COORDINATES,
        "Episodes": EPISODE,
        "Steps": STEP,
        "Validation": VALIDATION,
        "Episodes rolled out ahead (rollout.overlap)": OVERLAP,
        "Columns of rollouts/episode-NNNNN.parquet": ROLLOUT_COLUMNS,
    }
    lines = ["# Metrics", "", "Made by `rethinker glossary`; the texts live in `rethinker/rundir/glossary.py`."]
    for title, entries in sections.items():
        lines += ["", f"## {title}", "", "| name | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in entries.items()]
    return "\n".join(lines) + "\n"
