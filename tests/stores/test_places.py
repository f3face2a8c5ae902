"""Where a file lies tells whether all who open it share memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from scheduler.stores.places import told_by, tried, why_no_log

MOUNTS = [
    ("/", "overlay"), ("/home", "ext4"), ("/home/ann/far", "nfs4"), ("/home/ann/far/near", "xfs"),
    ("/mnt/host", "virtiofs"), ("/mnt/docker", "fakeowner"), ("/mnt/new", "somethingfs"), ("/mnt/bucket", "fuse.s3fs"), ("/mnt/usb", "fuseblk"),
    ("/data/one.db", "ext4"), ("/twice", "ext4"), ("/twice", "cifs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/s.db", None), ("/home/ann/s.db", None), ("/home/ann/farther/s.db", None),
        ("/home/ann/far/s.db", "nfs4"), ("/home/ann/far/near/s.db", None),
        ("/mnt/host/s.db", "virtiofs"), ("/mnt/docker/s.db", "fakeowner"), ("/mnt/new/s.db", "somethingfs"),
        ("relative/s.db", "nobody tells which"), ("/mnt/bucket/s.db", "fuse.s3fs"), ("/mnt/usb/s.db", None),
        ("/data/one.db", "without its folder"), ("/data/two.db", None), ("/twice/s.db", "cifs"),
    ],
)  # fmt: skip
def test_a_log_is_only_where_memory_is_shared(place, why):
    found = told_by(MOUNTS, place)
    assert found is None if why is None else why in found


def test_what_is_mounted_is_read_with_odd_names_too(tmp_path, monkeypatch):
    folder = tmp_path / "a folder\\of mine"
    folder.mkdir()
    shown = str(folder).replace("\\", "\\134").replace(" ", "\\040")
    text = f"20 1 8:1 / / rw - ext4 /dev/a rw\n21 20 0:9 / {shown} rw shared:1 - nfs4 far:/ rw\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert "nfs4" in why_no_log(folder / "s.db")
    assert why_no_log(tmp_path / "s.db") is None


@pytest.mark.parametrize(
    ("fstype", "opts", "why"),
    [("apfs", "rw,local", None), ("smbfs", "rw", "smbfs"), ("NTFS", "rw,remote", "remote")],
)
def test_other_systems_are_asked_by_psutil(tmp_path, monkeypatch, fstype, opts, why):
    def gone(self, **_):
        raise FileNotFoundError

    part = SimpleNamespace(mountpoint=str(tmp_path), fstype=fstype, opts=opts)
    monkeypatch.setattr(Path, "read_text", gone)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [part])
    found = why_no_log(tmp_path / "s.db")
    assert found is None if why is None else why in found


def test_a_log_is_tried_and_nothing_is_left_of_it(tmp_path):
    assert tried(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_none_says_why(tmp_path):
    (tmp_path / "file").touch()
    assert "its folder takes none" in tried(tmp_path / "file")
