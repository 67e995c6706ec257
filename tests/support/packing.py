"""Archives as bytes, and what is asked of a store for them."""

import gzip
import io
import tarfile
import zipfile

import pyarrow as pa

from pipeline.storage.remote import open_filesystem


def packed(name, files, *, method=zipfile.ZIP_DEFLATED):
    """The bytes of an archive of the kind its name says. files: name -> bytes, or a list of (name or info, bytes)."""
    files = list(files.items()) if isinstance(files, dict) else files
    sink = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(sink, "w", method) as archive:
            for path, data in files:
                archive.writestr(path, data)
        return sink.getvalue()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for path, data in files:
            info = path if isinstance(path, tarfile.TarInfo) else tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    if name.endswith((".gz", ".tgz")):
        return gzip.compress(sink.getvalue(), mtime=0)
    return pa.compress(sink.getvalue(), codec="zstd", asbytes=True) if name.endswith(".zst") else sink.getvalue()


def requests_of(s3, work):
    """What the work asked of the store: (method, range) each."""
    seen = []

    def see(request, **_):
        seen.append((request.method, request.headers.get("Range", b"")))

    client = open_filesystem(s3.url())[0].s3
    client.meta.events.register("before-send.s3", see)
    try:
        value = work()
    finally:
        client.meta.events.unregister("before-send.s3", see)
    return value, seen
