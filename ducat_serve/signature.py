"""Signatures of model files, beside the file as `model.onnx.sig`.

A signature is a Sigstore bundle, made and checked by the library `model-signing` with keys on an elliptic curve. It is
made and checked without network. The library's own command line reads and writes the same files.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ducat_serve.atomic import replacing
from ducat_serve.errors import DataError, UsageError, VerificationError, command_line, missing_extra
from ducat_serve.regular_file import read_regular_file

if TYPE_CHECKING:
    from model_signing import verifying

SUFFIX = ".sig"
# Under names of their own: openssl does not ask before it writes over a key that is there.
_KEY_PAIR = "openssl ecparam -name prime256v1 -genkey -noout -out signing-key.pem"
_PUBLIC_KEY = "openssl ec -in signing-key.pem -pubout -out signing-public.pem"
_AGAIN = "get the model and its signature again from whoever made them"
_LARGEST = 2**20  # bytes of a key or a signature; both have some hundred
_PRIVATE = b"PRIVATE KEY-----"
_PACKAGE, _EXTRA = "model-signing", "sign"


def signature_path(model: Path) -> Path:
    """Where the signature of a model file lies: beside it, under its name and `.sig`."""
    return model.with_name(model.name + SUFFIX)


def sign(data: bytes, model: Path, private_key: Path, out: Path | None = None) -> Path:
    """Sign these bytes, which were read from ``model``; returns where the signature is.

    Args:
        model: any file, or a link to it. That it is a sound model is not looked at here.
        private_key: PEM, on one of the curves P-256, P-384 and P-521; read once, so it may be a pipe.
        out: where the signature goes; None for `signature_path`. One that was there is replaced.

    Raises:
        UsageError: the signature would replace the model or the key.
        DataError: the key cannot be read, is encrypted, or is no such key.
        DucatError: model-signing is not installed, or the signature cannot be written.
    """
    target = out or signature_path(model)
    for what, file in (("model", model), ("private key", private_key)):
        if target.exists() and file.exists() and target.samefile(file):
            raise UsageError(
                f"{target} is the {what}, which the signature would replace.", "leave --out away"
            )
    try:
        from model_signing import signing
    except ImportError as error:
        raise missing_extra(_PACKAGE, _EXTRA) from error
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except OSError as error:
        next_step = _KEY_PAIR if isinstance(error, FileNotFoundError) else f"see who may read {private_key}"
        raise DataError(f"Cannot read the key {private_key}: {error.strerror}.", next_step) from error
    except TypeError as error:  # what cryptography raises where it would need a password
        decrypted = command_line("openssl", "pkey", "-in", private_key)
        piped = f"{command_line('ducat', 'sign', model)} --private-key <({decrypted})"
        raise DataError(f"The key {private_key} is encrypted.", f"decrypt it on the way: {piped}") from error
    except Exception as error:
        # Each kind of wrong key has its own: ValueError, AttributeError, UnsupportedAlgorithm.
        raise DataError(
            f"{private_key} holds no private key on one of the curves P-256, P-384 and P-521.", _KEY_PAIR
        ) from error
    # The library reads paths only, and no links.
    with tempfile.TemporaryDirectory(prefix="ducat-sign-") as folder, replacing(target) as temporary:
        copy = Path(folder) / model.name
        copy.write_bytes(data)
        config.sign(copy, temporary)
    return target


def read_public_key(path: Path) -> bytes:
    """The bytes of a public key.

    Raises:
        DataError: there is none at ``path``, or it is on no curve that signatures are made with.
        DucatError: model-signing is not installed.
    """
    key = _read_small(path, "public key", _PUBLIC_KEY)
    if _PRIVATE in key:
        raise DataError(
            f"{path} holds a private key, which belongs to whoever signs. This needs its public key.",
            command_line("openssl", "pkey", "-in", path, "-pubout", "-out", "signing-public.pem"),
        )
    with tempfile.TemporaryDirectory(prefix="ducat-key-") as folder:
        _verifier(key, path, Path(folder))
    return key


def require_signature(data: bytes, model: Path, public_key: Path, signature: Path | None = None) -> None:
    """Check that these bytes, which were read from ``model``, are what the owner of the key signed.

    The bytes are checked and not the file, so that nobody can change the file between the check and its use.

    Args:
        signature: None for `signature_path`.

    Raises:
        VerificationError: there is no signature; it is damaged, of another key, or of other bytes.
        DataError: the public key or the signature cannot be read, or the key is none.
        DucatError: model-signing is not installed.
    """
    key = read_public_key(public_key)
    signature = signature or signature_path(model)
    if not signature.exists():
        out = [] if signature == signature_path(model) else ["--out", signature]
        next_step = command_line("ducat", "sign", model, "--private-key", "key.pem", *out)
        raise VerificationError(f"{model} is not signed: there is no {signature}.", next_step)
    bundle = _read_small(signature, "signature", _AGAIN)
    # The library reads paths only. These are copies that nobody else can write.
    with tempfile.TemporaryDirectory(prefix="ducat-signature-") as name:
        folder = Path(name)
        verifier = _verifier(key, public_key, folder)
        copy, its_signature = folder / "model", folder / "signature"
        copy.write_bytes(data)
        its_signature.write_bytes(bundle)
        try:
            _require_key_hint(bundle)
            verifier.verify(copy, its_signature)
        except Exception as error:  # each way to be wrong has its own, down to KeyError and binascii.Error
            raise VerificationError(_cause(error, model, signature, public_key), _AGAIN) from error


def _cause(error: Exception, model: Path, signature: Path, public_key: Path) -> str:
    """What was wrong, in our words: the library's tell of its temporary copies, or nothing at all."""
    if type(error).__name__ == "InvalidSignature" or "Key mismatch" in str(error):
        return f"{signature} was not made with the key that belongs to {public_key}."
    if "Signature mismatch" in str(error):
        return f"{model} is not the file that was signed: {signature} is of other bytes."
    return f"{signature} is no signature by a key (a Sigstore bundle of model-signing 1.1), or it is damaged."


def _require_key_hint(bundle: bytes) -> None:
    """Refuse what old versions of the library wrote: about it the library would print, and stdout is ours."""
    if not json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"]:
        raise ValueError("no hint")


def _verifier(key: bytes, path: Path, folder: Path) -> verifying.Config:
    try:
        from model_signing import verifying
    except ImportError as error:
        raise missing_extra(_PACKAGE, _EXTRA) from error
    copy = folder / "public.pem"
    copy.write_bytes(key)
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=copy)
    except Exception as error:  # ValueError, AttributeError, UnsupportedAlgorithm
        raise DataError(
            f"{path} holds no public key on one of the curves P-256, P-384 and P-521.", _PUBLIC_KEY
        ) from error


def _read_small(path: Path, what: str, next_step: str) -> bytes:
    """A file that is small when it is what it should be."""
    data = read_regular_file(path, f"the {what} {path}", next_step, _LARGEST + 1)
    if len(data) > _LARGEST:
        raise DataError(f"{path} is too large for a {what}.", next_step)
    return data
