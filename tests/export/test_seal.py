"""Sealing and signing, tried as a user does: with keys that openssl and ssh-keygen made."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from csd.export.cli import main as export
from csd.runtime import Bundle
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.cli import main as generate
from csd.runtime.errors import BundleError

from ..helpers import failure

pytest.importorskip("cryptography")


def run(*command):
    subprocess.run([*map(str, command)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Private and public keys by name: PEM, OpenSSH, and others that do not do."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("pem", "other"):
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / name)
        run("openssl", "pkey", "-in", folder / name, "-pubout", "-out", folder / f"{name}.pub")
    run("openssl", "genpkey", "-algorithm", "rsa", "-out", folder / "rsa")
    run("openssl", "pkey", "-in", folder / "rsa", "-pubout", "-out", folder / "rsa.pub")
    run("openssl", "pkey", "-in", folder / "pem", "-aes256", "-passout", "pass:x",
        "-out", folder / "locked")  # fmt: skip
    (folder / "garbage").write_bytes(b"\x00\xff" * 9)
    return folder


@pytest.fixture
def bundle(make_bundle):
    return make_bundle()


def signed(bundle, keys, key="pem"):
    assert export(["--seal", str(bundle), "--sign", str(keys / key)]) == 0
    return bundle


def test_a_signed_bundle_opens_for_the_owner_of_the_key_alone(bundle, keys):
    with pytest.raises(BundleError, match=r"is not signed: csd-export --seal .* --sign KEY"):
        Bundle.open(bundle, require_signature=keys / "pem.pub")
    signed(bundle, keys)
    assert Bundle.open(bundle, require_signature=keys / "pem.pub").check.policy == "always"
    with pytest.raises(BundleError, match="its signature is of another key, or its manifest was"):
        Bundle.open(bundle, require_signature=str(keys / "other.pub"))
    Bundle.open(bundle)


def test_openssl_verifies_a_signature_with_the_command_of_the_docs(bundle, keys):
    signed(bundle, keys)
    run("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys / "pem.pub", "-rawin", "-in",
        bundle / "manifest.json", "-sigfile", bundle / "manifest.sig")  # fmt: skip


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen is installed")
def test_keys_of_openssh_do_too(bundle, keys):
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "ssh")
    signed(bundle, keys, "ssh")
    Bundle.open(bundle, require_signature=keys / "ssh.pub")


def test_a_key_as_openssh_writes_it_is_read(bundle, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    (tmp_path / "id").write_bytes(
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption())
    )
    (tmp_path / "id.pub").write_bytes(
        key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    )
    signed(bundle, tmp_path, "id")
    Bundle.open(bundle, require_signature=tmp_path / "id.pub")


@pytest.mark.parametrize("change", ["manifest", "signature", "shorter", "longer"])
def test_what_is_changed_after_signing_is_not_opened(bundle, keys, change):
    signed(bundle, keys)
    signature, manifest = bundle / "manifest.sig", bundle / "manifest.json"
    content = signature.read_bytes()
    if change == "manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b'"max_gamma"', b'"max_gamma" ', 1))
        Bundle.open(bundle)
    else:
        altered = {"signature": bytes([content[0] ^ 1]) + content[1:], "shorter": content[:-1],
                   "longer": content + b"\0"}  # fmt: skip
        signature.write_bytes(altered[change])
    with pytest.raises(BundleError, match="was changed after it was signed"):
        Bundle.open(bundle, require_signature=keys / "pem.pub")


def test_files_are_compared_though_their_hashes_are_remembered(bundle, keys, monkeypatch):
    signed(bundle, keys)
    with Bundle.open(bundle).session():
        pass
    monkeypatch.setattr("csd.runtime.bundle.verification._entries", lambda: pytest.fail("read"))
    with Bundle.open(bundle, require_signature=keys / "pem.pub").session():
        pass


def test_commands_ask_for_a_signature(bundle, keys, tmp_path, capsys):
    argv = [str(bundle), "--labels=0", "--mode=target", "--num-iter=1", "--quiet",
            f"--out={tmp_path / 'x.png'}", f"--require-signature={keys / 'pem.pub'}"]  # fmt: skip
    assert "is not signed" in failure(generate, argv, capsys)
    assert not (tmp_path / "x.png").exists()
    signed(bundle, keys)
    assert generate(argv) == 0
    assert "a signature says something" in failure(
        generate, [*argv, "--verify-files=never"], capsys
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rsa.pub", "a key of another kind"),
        ("garbage", "holds no public key"),
        ("pem", "holds no public key"),
        ("nothing", "No such file"),
        ("", "Is a directory"),
    ],
)
def test_a_public_key_that_does_not_do_is_one_line(bundle, keys, capsys, name, told):
    argv = [str(bundle), "--labels=0", f"--require-signature={keys / name}"]
    assert told in failure(generate, argv, capsys)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rsa", "a key of another kind"),
        ("locked", "is protected by a passphrase"),
        ("garbage", "holds no private key"),
        ("pem.pub", "holds no private key"),
        ("nothing", "No such file"),
    ],
)
def test_a_private_key_that_does_not_do_is_told_before_the_work(keys, tmp_path, capsys, name, told):
    argv = ["--zoo=fashion-mnist", f"--out={tmp_path / 'b'}", f"--sign={keys / name}"]
    assert told in failure(export, argv, capsys)
    assert not (tmp_path / "b").exists()


def test_a_slim_bundle_is_signed_as_it_is_written(bundle, keys, tmp_path, capsys):
    argv = [f"--slim={bundle}", "--for=fp32,cpu", f"--out={tmp_path / 's'}"]
    assert export([*argv, f"--sign={keys / 'pem'}"]) == 0
    assert "signed with" in capsys.readouterr().out
    Bundle.open(tmp_path / "s", require_signature=keys / "pem.pub")
    # A bundle that takes its place is another one, and has no signature of the first.
    assert export([*argv, "--force"]) == 0
    assert not (tmp_path / "s" / "manifest.sig").exists()


def with_code(bundle):
    """Put a library and a kernel into a bundle, as the build commands do."""
    (bundle / "libcsd_plugins.so").write_bytes(b"plugins")
    (bundle / "kernels").mkdir(exist_ok=True)
    (bundle / "kernels" / "a.cubin").write_bytes(b"cubin")
    digest = file_sha256(bundle / "kernels" / "a.cubin")
    listing = {"cubins": [{"arch": 87, "file": "a.cubin", "sha256": digest}]}
    (bundle / "kernels" / "kernels.json").write_text(json.dumps(listing))
    return bundle


def test_code_is_loaded_where_the_manifest_names_it(bundle, capsys):
    with_code(bundle)
    for name in ("libcsd_plugins.so", "kernels/kernels.json"):
        with pytest.raises(BundleError, match=r"code that its manifest does not name: csd-export"):
            Bundle.open(bundle).check.code(name)
    assert export(["--seal", str(bundle)]) == 0
    assert "libcsd_plugins.so, kernels/kernels.json" in capsys.readouterr().out
    opened = Bundle.open(bundle, verify_files="never")
    opened.check.code("libcsd_plugins.so")
    opened.check.code("kernels/kernels.json")
    (bundle / "libcsd_plugins.so").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"was altered .*: csd-export --seal"):
        Bundle.open(bundle, verify_files="never").check.code("libcsd_plugins.so")
    # As the message says; what is gone is named no longer.
    (bundle / "libcsd_plugins.so").unlink()
    with pytest.raises(BundleError, match=r"lacks libcsd_plugins.so: csd-export --seal"):
        Bundle.open(bundle).check.code("libcsd_plugins.so")
    assert export(["--seal", str(bundle)]) == 0
    assert [*Bundle.open(bundle).manifest.code] == ["kernels/kernels.json"]


def test_a_seal_that_changes_a_signed_bundle_says_so(bundle, keys, capsys):
    signed(bundle, keys)
    assert export(["--seal", str(bundle)]) == 0  # nothing is new
    assert "warning" not in capsys.readouterr().out
    Bundle.open(bundle, require_signature=keys / "pem.pub")
    with_code(bundle)
    assert export(["--seal", str(bundle)]) == 0
    assert "its signature does not hold any more" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(BundleError, match="was changed after it was signed"):
        Bundle.open(bundle, require_signature=keys / "pem.pub")


def test_kernels_that_are_not_those_of_their_list_are_not_taken_in(bundle, capsys):
    with_code(bundle)
    (bundle / "kernels" / "a.cubin").write_bytes(b"other")
    assert "has another hash of a.cubin" in failure(export, ["--seal", str(bundle)], capsys)
    (bundle / "kernels" / "a.cubin").unlink()
    assert "no list of kernels that are there" in failure(export, ["--seal", str(bundle)], capsys)
    assert not Bundle.open(bundle).manifest.code


def test_an_export_to_its_place_keeps_code_that_was_built(bundle, tmp_path):
    place = tmp_path / "s"
    argv = [f"--slim={bundle}", "--for=fp32,cpu", f"--out={place}"]
    assert export(argv) == 0
    assert export(["--seal", str(with_code(place))]) == 0
    assert export([*argv, "--force"]) == 0
    assert (place / "libcsd_plugins.so").read_bytes() == b"plugins"
    assert not Bundle.open(place).manifest.code


def test_a_slim_bundle_for_the_cpu_needs_no_code(bundle, tmp_path):
    assert export(["--seal", str(with_code(bundle))]) == 0
    assert export([f"--slim={bundle}", "--for=fp32,cpu", f"--out={tmp_path / 's'}"]) == 0
    assert not Bundle.open(tmp_path / "s").manifest.code
    assert not (tmp_path / "s" / "libcsd_plugins.so").exists()


@pytest.mark.parametrize(
    "also", ["--zoo=fashion-mnist", "--out=x", "--backend=tensorrt", "--force"]
)
def test_sealing_takes_no_option_of_an_export(bundle, capsys, also):
    said = failure(export, ["--seal", str(bundle), also], capsys)
    assert "does not go with --seal" in said


def test_what_is_no_bundle_is_not_sealed(tmp_path, capsys):
    assert "no bundle at" in failure(export, ["--seal", str(tmp_path)], capsys)


def test_links_are_not_written_to(bundle, tmp_path, keys, capsys):
    (tmp_path / "elsewhere").write_bytes(b"")
    (bundle / "manifest.sig").symlink_to(tmp_path / "elsewhere")
    argv = ["--seal", str(bundle), "--sign", str(keys / "pem")]
    assert "is a link" in failure(export, argv, capsys)
    assert (tmp_path / "elsewhere").read_bytes() == b""
