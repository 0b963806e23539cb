"""A certificate for servers that speak TLS."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.processes import drop_root, scratch_directory


def self_signed() -> tuple[Path, Path]:
    """Files with a key and its certificate, of `drop_root`'s user."""
    directory = scratch_directory("certificate", unprivileged=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    contents = key.private_bytes(pem, *plain), certificate.public_bytes(pem)
    files = directory / "key.pem", directory / "certificate.pem"
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
        file.chmod(0o600)
        if identity := drop_root():
            os.chown(file, identity["user"], identity["group"])
    return files
