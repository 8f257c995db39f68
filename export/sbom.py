"""The software bill of materials of a Bento (CycloneDX 1.6): its model, its code, and every package that it pins.

It depends on nothing but those, so that the same Bento has the same bill: it has no date and no serial number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ducat_serve import __version__
from ducat_serve.errors import DucatError, missing_extra
from ducat_serve.spec import ModelSpec
from export.requirements import PROJECT, installed_requirements

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

FILE = "sbom.cdx.json"
_LONGEST_NAME = (
    100  # characters; where a package has the text of its licence in the place of a name it is left out
)


def sbom(model: Path, spec: ModelSpec, name: str, extras: Sequence[str]) -> str:
    """The bill of a Bento of ``model``, as CycloneDX JSON.

    Args:
        model: the file that it serves, with its ``spec``.
        name: of the Bento; its version is the start of the digest of the weights.
        extras: of ducat-serve, whose packages it requires.

    Raises:
        DucatError: a package is not installed here or does not say its version, so that the bill would have a hole;
            or cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
    except ImportError as error:
        raise missing_extra("cyclonedx-python-lib", "sbom") from error
    versions, missing = installed_requirements(extras)
    if missing:
        raise DucatError(
            f"The bill of materials would not be whole: {', '.join(sorted(missing))} is not installed here.",
            "build the Bento where everything that it requires is installed",
        )
    version = spec.weights_digest[:12]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    root = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref="bento")
    code = Component(name=PROJECT, version=__version__, type=ComponentType.LIBRARY, bom_ref=PROJECT)
    weights = Component(
        name=model.name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=model.name,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
    packages = {package: _component(package, found) for package, found in versions.items()}
    bom = Bom(components=[code, weights, *packages.values()])
    bom.metadata.component = root
    bom.register_dependency(root, [code, weights, *packages.values()])
    for package, component in packages.items():
        needs = {canonicalize_name(Requirement(text).name) for text in distribution(package).requires or ()}
        bom.register_dependency(
            component, [packages[need] for need in sorted(needs - {package}) if need in packages]
        )
    bom.serial_number = None  # type: ignore[assignment]  # both are optional in CycloneDX
    bom.metadata.timestamp = None  # type: ignore[assignment]
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2) + "\n"


def _component(package: str, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        name=package,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{package}=={version}",
        purl=PackageURL("pypi", name=package, version=version),
        licenses=_licences(package),
    )


def _licences(package: str) -> list[License]:
    """What the package declares, as an SPDX expression or by name; none where its metadata has neither."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import LicenseAcknowledgement

    metadata = distribution(package).metadata
    name = next((metadata[key] for key in ("License-Expression", "License") if key in metadata), "")
    if not 0 < len(name) <= _LONGEST_NAME or "\n" in name:
        return []
    return [LicenseFactory().make_from_string(name, license_acknowledgement=LicenseAcknowledgement.DECLARED)]
