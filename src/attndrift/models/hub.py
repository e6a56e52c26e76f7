"""Where a model is: a name and a revision become a commit on the hub, or in its cache, and a list of files.

Only ``safetensors`` count as weights. They are looked for on the revision that was asked for, then in the
conversion that the hub's own bot proposed on top of that commit, and nowhere else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from attndrift import hub_client
from attndrift.files import sha256, write_bytes
from attndrift.models.backbone import scheme_of
from attndrift.models.errors import HubError, ModelError
from attndrift.models.known import KNOWN
from attndrift.models.reference import CONFIG_PREFIX, ModelReference, at_commit, is_on_hub
from attndrift.models.weight_files import INDEX, WEIGHTS, damaged_weights

EMBEDDED = Path(__file__).parent / "embedded"
CONVERSION_BOT = "SFconvertbot"
"""The account under which the hub proposes conversions to ``safetensors``."""
BY_BOT = "bot's conversion"
CONFIG = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Ends of the names of pickled weights."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of configs, tokenizers and processors."""
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelLocation:
    """A model that was found.

    Attributes:
        source: as it was asked for.
        location: a folder, or the name of a repository.
        commit: of the repository; None for a folder.
        how: why this commit: ``folder``, ``embedded``, ``config``, ``as asked``, ``known table``,
            ``bot's conversion`` or ``cache``; with ``, as COMMIT is gone`` where the commit of the table was not
            to be had and ``main`` is taken in its place.
        files: bytes of every file by its name; None where they are not known.
        checksums: SHA-256 of large files, where the hub states them.
        references: commits by the names under which the cache is to know them, for work offline.
    """

    source: str
    location: str
    commit: str | None
    how: str
    files: Mapping[str, int | None]
    checksums: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def pinned(self) -> str:
        """A source that names this very commit."""
        return self.source if self.commit is None else f"{self.location}@{self.commit}"

    @property
    def weights(self) -> list[str]:
        """Files of the ``safetensors`` weights, with the index of shards."""
        if WEIGHTS in self.files:
            return [WEIGHTS]
        return [name for name in self.files if name == INDEX or _SHARD.fullmatch(name)] if INDEX in self.files else []

    @property
    def others(self) -> list[str]:
        """Config, tokenizer and processor files."""
        return [name for name in self.files if name.endswith(_BESIDE_WEIGHTS) and "/" not in name and name != INDEX]

    @property
    def bytes_to_download(self) -> int:
        """Bytes of config, weights, tokenizer and processor that are not in the cache yet."""
        if self.commit is None:
            return 0
        return sum(self.files[name] or 0 for name in (*self.weights, *self.others) if not self._is_whole(name))

    def _cached(self, name: str) -> Path | None:
        return _in_cache(self.location, name, self.commit)

    def _is_whole(self, name: str) -> bool:
        """Whether the cache has the file, in the size that the hub states."""
        path = self._cached(name)
        return path is not None and self.files[name] in (None, path.stat().st_size)

    def damaged_weights(self) -> dict[str, str]:
        """What is wrong with files of weights that are here and will not be downloaded, by file."""
        if self.commit is None:
            return damaged_weights(Path(self.location))
        here = next((path for name in self.weights if (path := self._cached(name)) is not None), None)
        damaged = {} if here is None else damaged_weights(here.parent)
        return {name: wrong for name, wrong in damaged.items() if name not in self.files or self._is_whole(name)}

    def fetch(self, names: Iterable[str], *, again: bool = False) -> Path:
        """The folder that holds the files ``names``, downloaded where they are not in the cache.

        ``again``: also where they are. Raises :class:`ModelError`.
        """
        if self.commit is None:
            return Path(self.location)
        folder = None
        for name in names:
            path = self._cached(name)
            if path is None or again or not self._is_whole(name):
                path = _download(self, name, again=path is not None)
            folder = path.parents[name.count("/")]
        _note_in_cache(self.location, self.references)
        if folder is None:
            raise ModelError(f"{self.source}: holds none of the files that are needed")
        return folder


# -- finding -------------------------------------------------------------------------------------

_answers: dict[tuple[object, ...], ModelLocation | ModelError] = {}


def forget_answers() -> None:
    """Ask hubs again for what they were asked in this process."""
    _answers.clear()
    hub_client.forget_unreachable()


def resolve_model(source: str | Path, *, recorded_commit: str | None = None, adapters: bool = False) -> ModelLocation:
    """Find the model called ``source``, downloading no weights.

    Args:
        source: ``embedded``, ``config:NAME``, a folder, ``NAME`` or ``NAME@REVISION``.
        recorded_commit: the commit that a study has recorded; it takes the place of the revision.
        adapters: also take a repository that holds a ``peft`` adapter and no model.

    A hub is asked once a process for each model. Raises :class:`ModelError`.
    """
    text = str(source)
    if text == "embedded" and not (EMBEDDED / CONFIG).is_file():
        raise ModelError(
            "`embedded`: this installation holds no embedded model; use `config:small`, a folder or a hub name"
        )
    if text.startswith(CONFIG_PREFIX):
        return ModelLocation(text, text, None, "config", {})
    scheme = scheme_of(text)
    if scheme is not None:
        repository = None if scheme[0].repository is None else scheme[0].repository(scheme[1])
        if repository is None:
            return ModelLocation(text, text, None, "config", {})
        return replace(find_files(at_commit(repository, recorded_commit)), source=text)
    if not is_on_hub(text):
        return _in_folder(text)
    reference = ModelReference.parse(at_commit(text, recorded_commit))
    key = (text, reference, adapters, constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE)
    if key not in _answers:
        try:
            _answers[key] = _on_hub(text, reference, adapters)
        except ModelError as error:
            _answers[key] = error
    answer = _answers[key]
    if isinstance(answer, ModelError):
        raise answer
    return answer


def find_files(source: str) -> ModelLocation:
    """The files of a model on a hub at exactly the revision asked for, whatever weights it has.

    Raises :class:`HubError`.
    """
    reference = ModelReference.parse(source)
    known = KNOWN.get(reference.name)
    revision = reference.revision or (None if known is None else known.revision)
    try:
        return _ask_for_files(source, reference.name, revision, "as asked")
    except HubError:
        cached = _from_cache(source, reference.name, revision or constants.DEFAULT_REVISION)
        if cached is None:
            raise
        return cached


def _in_folder(source: str) -> ModelLocation:
    folder = EMBEDDED if source == "embedded" else Path(source)
    if folder.is_file():
        raise ModelError(f"{source}: a file; give the folder that holds config.json and model.safetensors")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return ModelLocation(source, str(folder), None, "embedded" if source == "embedded" else "folder", files)


def _on_hub(source: str, reference: ModelReference, adapters: bool) -> ModelLocation:
    known = KNOWN.get(reference.name)
    pinned = known.revision if known is not None and reference.revision is None else None
    how = "as asked" if pinned is None else "known table"
    wanted = reference.revision or pinned
    cached = _from_cache(source, reference.name, wanted or constants.DEFAULT_REVISION)
    # A commit never changes: where the cache has all of it there is nothing to ask.
    if cached is not None and _is_whole(cached) and (wanted is not None and _COMMIT.fullmatch(wanted)):
        return cached
    gone: str | None = None
    try:
        try:
            found = _ask_for_files(source, reference.name, wanted, how)
        except HubError as error:
            # A mirror, or the hub after a clean-up, may lack a commit beside `main`.
            if pinned is None or error.reason != "not found":
                raise
            found = _ask_for_files(source, reference.name, None, "as asked")
            gone = pinned
        if not found.weights and CONFIG in found.files:
            found = _proposed_conversion(found) or found
    except HubError as error:
        if error.reason == "not found":
            raise
        return _kept_in_cache(source, reference.name, wanted, pinned, adapters, error)
    return _usable(found if gone is None else _in_place_of(gone, found), adapters)


def _kept_in_cache(
    source: str, name: str, wanted: str | None, pinned: str | None, adapters: bool, error: HubError
) -> ModelLocation:
    """What the cache has of a model that the hub did not give. Raises ``error`` where that lacks the weights."""
    first = wanted or constants.DEFAULT_REVISION
    revisions = [first] + ([constants.DEFAULT_REVISION] if pinned else [])
    without_weights = None
    for revision in revisions:
        for kept_as in (revision, _conversion_of(revision)):
            found = _from_cache(source, name, kept_as)
            if found is None:
                continue
            if found.weights or (adapters and CONFIG not in found.files):
                return found if pinned is None or revision == first else _in_place_of(pinned, found)
            without_weights = without_weights or found
    if without_weights is not None:
        if any(file.endswith(PICKLES) for file in without_weights.files):
            return _usable(without_weights, adapters)  # which says how to convert them
        error.args = (f"{error} (of commit {without_weights.commit} the cache has no weights)",)
    raise error


def _in_place_of(gone: str, found: ModelLocation) -> ModelLocation:
    """``found``, which comes of ``main``, saying that it is not the commit of the table."""
    logger.warning(
        "%s: commit %s, which is known to hold its weights, is not to be had; taking commit %s of %s in its place",
        found.location, gone, found.commit, constants.DEFAULT_REVISION,
    )  # fmt: skip
    return replace(found, how=f"{found.how}, as {gone} is gone")


def _usable(found: ModelLocation, adapters: bool) -> ModelLocation:
    """``found``. Raises :class:`HubError` where it cannot be loaded as a model."""
    if adapters and CONFIG not in found.files and "adapter_config.json" in found.files:
        return found
    if CONFIG not in found.files:
        open_clip = any(name.startswith("open_clip") for name in found.files)
        raise HubError(
            f"{found.source}: holds no config.json, so transformers cannot load it"
            + (f"; it is a model of open_clip: give open_clip:{found.source}" if open_clip else ""),
            "no config",
        )
    if not found.weights:
        raise HubError(
            f"{found.source}: has no safetensors weights at commit {found.commit}. {convert_hint(found.pinned)}",
            "no weights",
        )
    return found


def convert_hint(source: str) -> str:
    """What to do about pickled weights."""
    return (
        "Pickled weights can run code when they are read, so they are refused. Convert them in a process of its own: "
        f"`attndrift convert {source} FOLDER`, and give that folder as the model"
    )


def _ask_for_files(source: str, name: str, revision: str | None, how: str) -> ModelLocation:
    info = _ask(
        source, lambda: HfApi().model_info(name, revision=revision, files_metadata=True, timeout=hub_client.SILENCE)
    )
    files = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    if info.gated and CONFIG in files:
        # The hub tells everyone what a gated repository holds, and lets few have it.
        url = hf_hub_url(name, CONFIG, revision=info.sha)
        _ask(source, lambda: get_hf_file_metadata(url, timeout=hub_client.SILENCE))
    checksums = {one.rfilename: one.lfs.sha256 for one in info.siblings or () if one.lfs is not None}
    references = {} if _COMMIT.fullmatch(revision or "") else {revision or constants.DEFAULT_REVISION: str(info.sha)}
    return ModelLocation(source, name, info.sha, how, files, checksums, references)


def _proposed_conversion(asked: ModelLocation) -> ModelLocation | None:
    """The hub's own conversion of exactly the commit that was asked for; None where there is none."""
    name = asked.location

    def listed(question: Callable[[], Iterable[T]]) -> list[T]:
        try:
            return _ask(asked.source, lambda: list(question()))
        except HubError as error:
            # Some repositories have their discussions switched off (403), and some mirrors have none (404).
            if error.reason in ("gated", "not found"):
                return []
            raise

    api = HfApi()
    for proposal in listed(
        lambda: api.get_repo_discussions(
            name, author=CONVERSION_BOT, discussion_type="pull_request", discussion_status="open"
        )
    ):
        # The hub filters, and is not taken at its word: anybody can give a pull request the bot's title.
        if proposal.author != CONVERSION_BOT or proposal.status != "open" or not proposal.is_pull_request:
            continue
        reference = f"refs/pr/{proposal.num}"
        commits = listed(partial(api.list_repo_commits, name, revision=reference))
        # Others may push to the branch of a pull request, so the commit itself must be the bot's too.
        if len(commits) < 2 or commits[1].commit_id != asked.commit or commits[0].authors != [CONVERSION_BOT]:
            continue
        conversion = _ask_for_files(asked.source, name, commits[0].commit_id, BY_BOT)
        if conversion.weights:
            logger.warning(
                "%s: commit %s has no safetensors; taking the conversion that %s proposed in %s, commit %s",
                name, asked.commit, CONVERSION_BOT, reference, conversion.commit,
            )  # fmt: skip
            names = map(_conversion_of, (*asked.references, str(asked.commit)))
            return replace(conversion, references=dict.fromkeys(names, str(conversion.commit)))
    return None


# -- asking --------------------------------------------------------------------------------------


def _ask(source: str, question: Callable[[], T]) -> T:
    """The hub's answer. Raises :class:`HubError` in bounded time."""
    if hub_client.offline():
        raise HubError(
            f"{source}: not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids asking the hub. Unset it "
            "and load the model once, or give a folder",
            "offline",
        )
    hub_client.bound_requests()
    unreachable = hub_client.why_unreachable()
    if unreachable is not None:
        raise _no_route(source, unreachable)
    try:
        return question()
    except Exception as error:  # the client raises its own, the transport's and the standard errors
        raise _refused(source, error) from error


def _no_route(source: str, why: str) -> HubError:
    return HubError(
        f"{source}: not a folder here, not in the cache, and the hub is out of reach: {why}. Check the network (behind "
        "a mirror: HF_ENDPOINT), or download the model elsewhere and give its folder",
        "no route",
    )


def _refused(source: str, error: Exception) -> HubError:
    """What a hub's refusal means."""
    said = hub_client.explain(error)
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    told = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    status = None if told is None or told.response is None else told.response.status_code
    if isinstance(told, GatedRepoError):
        name = ModelReference.parse(source).name
        return HubError(f"{source}: {said}: {hub_client.endpoint()}/{name}", "gated")
    if status == 429 or any("429" in str(one) for one in chain if isinstance(one, hub_client.HubUnreachable)):
        return HubError(f"{source}: {said}", "rate limit")
    if isinstance(told, RepositoryNotFoundError):
        return HubError(f"{source}: not a folder here, and {said}", "not found")
    if isinstance(told, RevisionNotFoundError) or status == 404:
        return HubError(f"{source}: {said}", "not found")
    if status in (401, 403):
        return HubError(f"{source}: {said}", "gated")
    if status is None:
        return _no_route(source, said)
    return HubError(f"{source}: {said}", "server error")


# -- the cache -----------------------------------------------------------------------------------


def _in_cache(name: str, file: str, revision: str | None) -> Path | None:
    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except (OSError, ValueError):  # a cache of another form
        return None
    return Path(found) if isinstance(found, str) else None


def _from_cache(source: str, name: str, revision: str | None) -> ModelLocation | None:
    """What the cache has of a revision; None where it does not have its config."""
    if revision is None:
        return None
    configs = (_in_cache(name, file, revision) for file in (CONFIG, "adapter_config.json", "open_clip_config.json"))
    config = next((path for path in configs if path is not None), None)
    if config is None or not _COMMIT.fullmatch(config.parent.name):
        return None
    files = {path.name: path.stat().st_size for path in sorted(config.parent.iterdir()) if path.is_file()}
    return ModelLocation(source, name, config.parent.name, "cache", files)


def _is_whole(found: ModelLocation) -> bool:
    """Whether nothing is missing that a model has: weights, tokenizer and image processor."""
    tokenizer = {"tokenizer.json", "vocab.json"} & set(found.files)
    processor = {"preprocessor_config.json", "processor_config.json"} & set(found.files)
    return bool(found.weights and tokenizer and processor) and not found.damaged_weights()


def _conversion_of(revision: str) -> str:
    """The name of a conversion in the cache: a reference beside ``main``."""
    return f"conversion-of-{revision}"


def _note_in_cache(name: str, references: Mapping[str, str]) -> None:
    """Give commits their names in the cache, as the library does for a branch that it downloads from."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
    for reference, commit in references.items():
        try:
            write_bytes(folder / reference, commit.encode())
        except OSError as error:
            logger.warning("%s: the cache cannot note that %s is %s: %s", name, reference, commit, error)


# -- downloading ---------------------------------------------------------------------------------


def _download(model: ModelLocation, name: str, *, again: bool) -> Path:
    def download() -> Path:
        return Path(hf_hub_download(model.location, name, revision=model.commit, force_download=again))

    for _ in range(2):
        try:
            path = _ask(model.source, download)
        except HubError as error:
            error.args = (f"{error} ({name} is missing; what has arrived of it is kept)",)
            raise
        expected = model.checksums.get(name)
        if expected is None or sha256(path) == expected:
            return path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise HubError(
        f"{model.source}: {name} arrived damaged twice: its SHA-256 is not the one that the hub states", "server error"
    )
