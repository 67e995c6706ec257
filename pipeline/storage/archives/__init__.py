"""Archives read by member, without unpacking them: zip, tar, tar.gz, tar.zst."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "listing": ["list_members"],
        "members": ["Member", "archive_of", "is_member", "kind_of", "member_url"],
        "parts": ["ArchiveError"],
        "reading": ["MemberReader"],
    },
)
