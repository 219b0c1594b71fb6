"""What a store of labels says of itself: whose labels they are, of which data, and what of an embedding is kept."""

import dataclasses
import json
import pathlib
from typing import Any

from gem_jax.errors import UserError
from gem_jax.files import write_json
from gem_jax.transfer.quantize import Storage

FILE_NAME = "manifest.json"
FORMAT = 1


class LabelError(UserError):
    """A store of labels is not there, damaged, or of another teacher or other data; the sentence says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Which vector of the teacher is kept, and how."""

    representation: str = "first"
    """Name among the model's representations: first (after GEM's first layer) or last (what the heads read)."""
    dim: int = 64
    """Components kept: a longer representation is projected by a random matrix, a shorter one stays as it is."""
    storage: Storage = "float16"
    """float32, float16, int8 or int4; what it loses is said by the manifest."""
    seed: int = 0
    """Of the matrix."""

    def __post_init__(self):
        if self.dim < 1:
            raise UserError(f"embedding.dim={self.dim} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """A teacher's pass over one part of the data.

    Attributes:
      run: name of the teacher's run.
      teacher: digest of its config, without what may change while a run goes on.
      state: digest of the parameters that made the labels; None in a progressive pass, where every step has its own.
      step: of these parameters; None in a progressive pass.
      data: digest of the part's examples.
      jax: version of JAX.
      written: when the pass began, ISO 8601.
      examples: how many it has labelled by the last count; None before the first.
      embedding_loss: relative error of the embeddings by their storage, see `quantize.Loss`.
    """

    run: str
    teacher: str
    state: str | None
    step: int | None
    data: str
    jax: str
    written: str
    examples: int | None = None
    embedding_loss: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Of a store.

    Attributes:
      tasks: names of the N tasks that the teacher scores, in the order of its logits.
      embedding: which vector is kept; None where none is.
      width: components of the vector; 0 where none is kept.
      passes: part of the data -> the pass over it.
    """

    tasks: tuple[str, ...]
    embedding: EmbeddingConfig | None
    width: int
    passes: dict[str, Pass]

    def with_pass(self, part: str, new: "Manifest", where: str) -> "Manifest":
        """This store with another pass begun or gone on with.

        Args:
          part: of the data that the pass is over.
          new: a store as it would be with this pass alone.
          where: how to call the store in an error.

        Raises:
          LabelError: the pass is by another teacher than the store's, over other data than the one begun, or of another kind.
        """
        wanted = new.passes[part]
        advice = "label into another folder, or remove this one"
        if self.tasks != new.tasks:
            raise LabelError(f"{where} has labels of {', '.join(self.tasks)}, not of {', '.join(new.tasks)}; {advice}")
        if (self.embedding, self.width) != (new.embedding, new.width):
            raise LabelError(f"{where} has embeddings by {self.embedding}, not by {new.embedding}; {advice}")
        for name, known in self.passes.items():
            if known.teacher != wanted.teacher:
                raise LabelError(
                    f"{where} has labels of {name} by another teacher, run '{known.run}', whose config is not that of "
                    f"'{wanted.run}'; {advice}"
                )
        known = self.passes.get(part, wanted)
        if known.data != wanted.data:
            raise LabelError(f"{where} has labels of other {part} data than these, by run '{known.run}'; {advice}")
        if (known.state, known.step) != (wanted.state, wanted.step):
            raise LabelError(
                f"{where} has labels of {part} by run '{known.run}' {_state(known)}, not {_state(wanted)}; {advice}"
            )
        return dataclasses.replace(self, passes=self.passes | {part: known})

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def write(self, folder: pathlib.Path) -> None:
        """Writes it into the store's folder, which is made if missing; raises UserError where that fails."""
        write_json(folder / FILE_NAME, self.to_json())


def read_manifest(folder: pathlib.Path) -> Manifest:
    """The manifest of the store in a folder.

    Raises:
      LabelError: there is none, or it is damaged or of another version.
    """
    file = folder / FILE_NAME
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise LabelError(f"{folder} was written by another gem_jax; label anew, or install that version")
        embedding = tree["embedding"]
        return Manifest(
            tasks=tuple(tree["tasks"]),
            embedding=None if embedding is None else EmbeddingConfig(**embedding),
            width=tree["width"],
            passes={part: Pass(**of_part) for part, of_part in tree["passes"].items()},
        )
    except FileNotFoundError as error:
        raise LabelError(f"{folder} holds no labels; let a teacher label the data into it first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabelError(f"{file} cannot be read ({error}); label anew into another folder") from error


def _state(of: Pass) -> str:
    return "while it trained" if of.state is None else f"after step {of.step}"
