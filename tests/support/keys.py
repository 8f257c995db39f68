"""Key pairs to sign with, as PEM files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ducat_serve.signature import sign


@dataclass(frozen=True)
class KeyPair:
    """Two PEM files."""

    private: Path
    public: Path


def key_pair(
    folder: Path,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    password: bytes | None = None,
) -> KeyPair:
    """Write ``key``, or a new one on P-256, and its public key into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    pair = KeyPair(folder / "key.pem", folder / "public.pem")
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    pair.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return pair


def signed(model: Path, private_key: Path) -> Path:
    """Sign any file, as `ducat sign` does a model; returns where the signature is."""
    return sign(model.read_bytes(), model, private_key)
