"""The token that opens a service, in a call's header."""

import requests
from requests.auth import AuthBase


class Bearer(AuthBase):
    """The token, if any, in place of what a .netrc has for the host."""

    def __init__(self, token: str | None) -> None:
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request
