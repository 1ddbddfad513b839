"""Who is who: the federation's own certificate authority, and the one-time invitations to it."""

from insitu.engines.https.authority.certificates import fingerprint
from insitu.engines.https.authority.folder import Authority
from insitu.engines.https.authority.keys import new_key, request_for
from insitu.engines.https.authority.tokens import Token

__all__ = ["Authority", "Token", "fingerprint", "new_key", "request_for"]
