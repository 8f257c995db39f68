"""Signatures: what is signed verifies, nothing else does, and the library's own command line agrees."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ducat_serve.bundled import model_path
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError, MissingPackage, VerificationError
from ducat_serve.model_file import VerifiedSpec, read_verified_spec
from ducat_serve.predictor import Predictor
from ducat_serve.sealed import SEAL_LENGTH, seal
from ducat_serve.signature import read_public_key, require_signature, signature_path
from tests.support.keys import KeyPair, key_pair, signed

LIBRARY = [sys.executable, "-P", "-m", "model_signing"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(model_path("digits-small", "onnx"), tmp_path / "model.onnx"))


def check(model: Path, keys: KeyPair) -> None:
    require_signature(model.read_bytes(), model, keys.public)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_what_was_signed_verifies_under_another_name_too(
    model: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    keys = key_pair(tmp_path / "keys", ec.generate_private_key(curve))
    signature = signed(model, keys.private)
    assert signature == signature_path(model) == model.with_name("model.onnx.sig")
    check(model, keys)
    moved = model.rename(model.with_name("other.onnx"))
    require_signature(moved.read_bytes(), moved, keys.public, signature)


def test_the_bytes_are_checked_and_not_the_file(model: Path, keys: KeyPair) -> None:
    """What is on the disk may have become another file since it was read."""
    signed(model, keys.private)
    data = model.read_bytes()
    model.write_bytes(b"another file")
    require_signature(data, model, keys.public)
    with pytest.raises(VerificationError, match="not the file that was signed"):
        check(model, keys)


def resealed(model: Path) -> bytes:
    """The file with eights called nines, and with every digest made to fit, as anybody can do."""
    spec = Predictor(model, "cpu").spec
    swapped = spec.model_copy(update={"labels": (*spec.labels[:8], "9", "8")})
    body = model.read_bytes()[:-SEAL_LENGTH]
    changed = body.replace(spec.to_json().encode(), swapped.to_json().encode())
    assert changed != body
    return seal(changed)


def test_a_changed_file_that_was_sealed_again_is_found_by_its_signature_only(
    model: Path, keys: KeyPair
) -> None:
    signed(model, keys.private)
    Predictor(model, "cpu", public_key=keys.public)
    model.write_bytes(resealed(model))
    Predictor(model, "cpu")  # every digest is right
    with pytest.raises(VerificationError, match="not the file that was signed"):
        Predictor(model, "cpu", public_key=keys.public)


def test_an_unsigned_file_and_one_of_another_key(model: Path, keys: KeyPair, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"is not signed: there is no .*model\.onnx\.sig") as caught:
        check(model, keys)
    assert caught.value.next_step == f"ducat sign {model} --private-key key.pem"
    elsewhere = tmp_path / "nosig"
    with pytest.raises(VerificationError, match=r"is not signed: there is no .*nosig") as caught:
        require_signature(model.read_bytes(), model, keys.public, elsewhere)
    assert caught.value.next_step == f"ducat sign {model} --private-key key.pem --out {elsewhere}"
    signed(model, key_pair(tmp_path / "other").private)
    with pytest.raises(VerificationError, match="not made with the key that belongs to"):
        check(model, keys)


def with_hint_of(bundle: Any, other: Any) -> None:
    bundle["verificationMaterial"] = other["verificationMaterial"]


def without_hint(bundle: Any, _: Any) -> None:
    del bundle["verificationMaterial"]["publicKey"]["hint"]


def with_payload_of(bundle: Any, other: Any) -> None:
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]


def without_signatures(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"]["signatures"] = []


def with_a_payload_of_nothing(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(b"{}").decode()


@pytest.mark.parametrize(
    "forge",
    [with_hint_of, without_hint, with_payload_of, without_signatures, with_a_payload_of_nothing],
)
def test_a_signature_that_was_put_together_is_refused(
    forge: Callable[[Any, Any], None], model: Path, keys: KeyPair, tmp_path: Path
) -> None:
    """By another key's hand: with our key's name on it, or with another signature's statement."""
    signature = signed(model, keys.private)
    ours = json.loads(signature.read_text())
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(resealed(model))
    theirs = json.loads(signed(changed, key_pair(tmp_path / "other").private).read_text())
    bundle = theirs if forge is with_hint_of else ours
    forge(bundle, ours if forge is with_hint_of else theirs)
    signature.write_text(json.dumps(bundle))
    target = changed if forge in (with_hint_of, with_payload_of) else model
    with pytest.raises(VerificationError):
        require_signature(target.read_bytes(), target, keys.public, signature)


@pytest.mark.parametrize("damage", [b"", b"no JSON", b"{}", b"[" * 100_000, b"\xff", b"x" * (2**20 + 1)])
def test_a_damaged_signature_is_an_error_of_ours(model: Path, keys: KeyPair, damage: bytes) -> None:
    signature_path(model).write_bytes(damage)
    with pytest.raises((VerificationError, DataError), match=r"model\.onnx\.sig is (no signature|too large)"):
        check(model, keys)


def test_keys_that_are_none(model: Path, keys: KeyPair, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no key")
    rsa_keys = key_pair(tmp_path / "rsa", rsa.generate_private_key(65537, 2048))
    small = key_pair(tmp_path / "small", ec.generate_private_key(ec.SECP256K1()))
    for private in (text, rsa_keys.private, small.private, keys.public):
        with pytest.raises(DataError, match="no private key on one of the curves"):
            signed(model, private)
    for public in (text, rsa_keys.public, small.public):
        with pytest.raises(DataError, match="no public key on one of the curves"):
            read_public_key(public)
    with pytest.raises(DataError, match="holds a private key") as refused:
        read_public_key(keys.private)
    assert "-pubout" in str(refused.value)
    for missing in (tmp_path / "none.pem", tmp_path):
        with pytest.raises(DataError):
            read_public_key(missing)
        with pytest.raises(DataError, match="Cannot read the key"):
            signed(model, missing)
    encrypted = key_pair(tmp_path / "encrypted", password=b"secret")
    with pytest.raises(DataError, match="is encrypted") as refused:
        signed(model, encrypted.private)
    assert f"<(openssl pkey -in {encrypted.private})" in str(refused.value)
    assert not signature_path(model).exists()


def test_without_the_extra_it_says_which(model: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    signed(model, keys.private)
    for name in ("model_signing", "model_signing.signing", "model_signing.verifying"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: signed(model, keys.private), lambda: check(model, keys)):
        with pytest.raises(MissingPackage, match=r"model-signing.*\n.*\[sign\]"):
            call()


def test_commands(model: Path, keys: KeyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signing = ["sign", str(model), "--private-key", str(keys.private)]
    verifying = ["verify", str(model), "--public-key", str(keys.public)]
    assert run(verifying) == 3
    assert "ducat sign" in capsys.readouterr().err
    assert run([*signing, "--json"]) == 0
    signed = json.loads(capsys.readouterr().out)
    assert signed["signature"] == f"{model}.sig"
    assert run([*verifying, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == signed["sha256"]
    other = str(tmp_path / "elsewhere.sig")
    assert run([*signing, "--out", other]) == 0
    assert f"--signature {other}" in capsys.readouterr().err
    signature_path(model).unlink()
    assert run([*verifying, "--signature", other]) == 0
    assert run(["sign", str(model), "--private-key", str(tmp_path / "none.pem")]) == 4
    model.write_bytes(model.read_bytes() + b" ")
    assert run([*verifying, "--signature", other]) == 3
    model.unlink()  # a bundle without its file
    capsys.readouterr()
    assert run([*verifying, "--signature", other]) == 4
    assert "without the file that was signed" in capsys.readouterr().err
    assert run(signing) == 4


def test_a_link_is_signed_and_what_is_signed_is_what_was_checked(
    model: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = model.with_name("link.onnx")
    link.symlink_to(model)
    original = model.read_bytes()

    def check_and_replace(path: Path) -> VerifiedSpec:
        checked = read_verified_spec(path)
        model.write_bytes(resealed(model))
        return checked

    monkeypatch.setattr("ducat_serve.model_file.read_verified_spec", check_and_replace)
    assert run(["sign", str(link), "--private-key", str(keys.private)]) == 0
    require_signature(original, link, keys.public)
    with pytest.raises(VerificationError, match="not the file that was signed"):
        check(link, keys)


@pytest.mark.parametrize("link", [False, True])
def test_a_signature_never_replaces_the_model_or_the_key(
    model: Path, link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = key_pair(tmp_path / "keys")
    for file, what in ((model, "the model"), (keys.private, "the private key")):
        before = file.read_bytes()
        out = file.with_name("link") if link else file
        if link:
            out.symlink_to(file)
        assert run(["sign", str(model), "--private-key", str(keys.private), "--out", str(out)]) == 2
        assert f"is {what}, which the signature would replace" in capsys.readouterr().err
        assert file.read_bytes() == before


def test_a_pipe_is_not_waited_for(keys: KeyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    assert run(["verify", str(pipe), "--public-key", str(keys.public)]) == 4
    assert "not a file" in capsys.readouterr().err


def test_a_file_that_is_no_model_of_ours_is_not_signed(model: Path, keys: KeyPair) -> None:
    model.write_bytes(model.read_bytes()[:-10])
    assert run(["sign", str(model), "--private-key", str(keys.private)]) == 4
    assert not signature_path(model).exists()


@pytest.mark.integration
def test_the_librarys_own_command_line_reads_ours_and_we_read_its(
    model: Path, keys: KeyPair, tmp_path: Path
) -> None:
    ours, theirs = signed(model, keys.private), tmp_path / "theirs.sig"
    verify = [*LIBRARY, "verify", "key", str(model), "--public_key", str(keys.public), "--signature"]
    assert subprocess.run([*verify, ours], timeout=120).returncode == 0
    signing = [*LIBRARY, "sign", "key", str(model), "--private_key", str(keys.private)]
    assert subprocess.run([*signing, "--signature", theirs], timeout=120).returncode == 0
    require_signature(model.read_bytes(), model, keys.public, theirs)
    model.write_bytes(model.read_bytes() + b" ")
    assert subprocess.run([*verify, ours], timeout=120).returncode != 0
