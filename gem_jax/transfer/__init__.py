"""What a trained teacher knows, handed to the models that serve.

A teacher labels examples once (`scoring`): its logits and an embedding of each, in a store keyed by `example_id` (`labels`). Any
number of students join the store with their own data (`joined.JoinedConfig`), in any order. A student's batch then has

    batch.training["teacher"]            float32 [B, N], the teacher's logits of the student's tasks, NaN where it has none
    batch.vectors["teacher"]             float32 [B, d], its embedding of the example, if asked for
    batch.vectors["teacher_history"]     float32 [B, d], the mean of its embeddings of the user's earlier examples, if asked for

The first is a training column of the schema (`data.schema.TrainingColumn`): objectives read it, models never see it, and scoring
does without.
"""

TEACHER = "teacher"
"""The training column of the teacher's logits, and the vector of its embedding of the example."""

HISTORY = "teacher_history"
"""The vector of the teacher's embeddings of a user's earlier examples, pooled."""
