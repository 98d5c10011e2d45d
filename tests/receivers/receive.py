"""Opens the bodies of a file of cases with http_ece from PyPI, or verifies its tokens with PyJWT.

receive.py bodies|tokens CASES

Prints how many were as expected; ends with an exception at the first that is not.
"""

import base64
import json
import re
import sys
import time

import http_ece
import jwt
from cryptography.hazmat.primitives.asymmetric import ec


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def parameter(header, name):
    """The parameter `name` of a header such as `dh=...;p256ecdsa=...`."""
    found = re.search(r"(?:^|[;, ])" + name + r"=([A-Za-z0-9_-]+)", header)
    assert found, f"no {name} in {header}"
    return found.group(1)


def open_body(case):
    number = int.from_bytes(decode(case["private_key"]), "big")
    arguments = {
        "private_key": ec.derive_private_key(number, ec.SECP256R1()),
        "auth_secret": decode(case["auth"]),
        "version": case["encoding"],
    }
    if case["encoding"] == "aesgcm":
        arguments["salt"] = decode(parameter(case["headers"]["encryption"], "salt"))
        arguments["dh"] = decode(parameter(case["headers"]["crypto_key"], "dh"))
    return http_ece.decrypt(decode(case["body"]), **arguments)


def check_body(case):
    if case["expected"] is None:
        try:
            open_body(case)
        except http_ece.ECEException:
            return
        raise AssertionError(case["name"] + ": opened, though it was changed")
    assert open_body(case) == decode(case["expected"]), case["name"]


def check_token(case):
    if case["scheme"] == "vapid":
        found = re.fullmatch(r"vapid t=([A-Za-z0-9_.-]+), k=([A-Za-z0-9_-]+)", case["authorization"])
        token, public = found.groups()
    else:
        token = re.fullmatch(r"WebPush ([A-Za-z0-9_.-]+)", case["authorization"]).group(1)
        public = parameter(case["crypto_key"], "p256ecdsa")
    assert public == case["public_key"]
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(public))
    required = {"require": ["aud", "exp", "sub"]}
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=case["audience"], options=required)
    assert claims["aud"] == case["audience"]
    assert claims["sub"] == case["subject"]
    assert type(claims["exp"]) is int
    # RFC 8292 section 2.
    assert 3600 < claims["exp"] - time.time() <= 23 * 3600
    try:
        jwt.decode(token, key, algorithms=["ES256"], audience=case["audience"] + "/")
    except jwt.InvalidAudienceError:
        return
    raise AssertionError("PyJWT takes any audience")


with open(sys.argv[2], encoding="ascii") as file:
    given = json.load(file)
kind, check = {"bodies": ("cases", check_body), "tokens": ("tokens", check_token)}[sys.argv[1]]
for each in given[kind]:
    check(each)
print(len(given[kind]), "as expected")
