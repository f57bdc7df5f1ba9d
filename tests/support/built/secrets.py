"""Secrets as they stand in command lines, configurations, logs and answers: a line each."""

from __future__ import annotations

# What names a secret in the line is `{}`; the secret itself is made of the line's number, so that each is its own.
LINES = (
    "password={}",
    "password: {}",
    "PASSWORD = '{}'",
    '"password": "{}"',
    "passwd={}",
    "passphrase={}",
    "passcode: {}",
    "auth-key={}",
    "auth_key: {}",
    "api_key={}",
    "api-key: {}",
    "apikey={}",
    "X-Api-Key: {}",
    "private_key={}",
    "private-key: {}",
    "access_key={}",
    "AWS_SECRET_ACCESS_KEY={}",
    "secret_key: {}",
    "account-key={}",
    "encryption-key={}",
    "token: {}",
    "token={}",
    "access_token={}",
    "refresh-token: {}",
    "the token is {}",
    "GITHUB_TOKEN={}",
    "X-Auth-Token: {}",
    "csrftoken={}",
    "credential={}",
    "credentials: {}",
    "Cookie: session={}",
    "Set-Cookie: sid={}; HttpOnly",
    "cookie={}",
    "cookie-secret-value={}",
    "Authorization: Bearer {}",
    "Authorization: Basic {}",
    "proxy-authorization: {}",
    "curl -H 'Bearer {}'",
    "--password {}",
    "--token {} --verbose",
    "--api-key={}",
    "-password {}",
    "psk={}",
    "wpa_psk: {}",
    "luks-key={}",
    "luks.passphrase={}",
    "chap_password={}",
    "node.session.auth.chap={}",
    "keyring={}",
    "session_id={}",
    "otp={}",
    "client_secret={}",
    '{{"client_secret":"{}"}}',
    "-object secret,id=s0,data={}",
    '{{"qom-type":"secret","id":"s0","data":"{}"}}',
    "<secret type='raw'>{}</secret>",
    "<password>{}</password>",
    "<graphics type='spice' passwd='{}'/>",
    "file=https://backup:{}@store/x.qcow2",
    "file=iscsi://u%{}@10.0.0.1/lun",
    "postgres://svc:{}@db/x",
    "https://store/x.qcow2?X-Amz-Signature={}",
    "cipassword: {} and more",
    "smbpasswd={}",
)
# These are known by their own shape, with no word before them.
SHAPED = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJxPLANTED1 root@hv7",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABPLANTED2",
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhPLANTED3",
    "-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaPLANTED4 -----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY----- MIIEowIBAAKCPLANTED5",
    "key AQBHCbtT6APDHhAA5W00cBchwkQjh3dPLANTED6==",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJQTEFOVEVE.PLANTED7",
    "AKIAPLANTED8AAAAAAAA",
    "ghp_PLANTED9abcdefghijklmnop",
    "glpat-PLANTED10abcdefghij",
    "xoxb-PLANTED11-abcdefgh",
    "hvs.PLANTED12abcdefghijk",
    "erika.planted13@bank.example",
    "iqn.2019-04.com.planted14:payroll.lun7",
    "naa.6planted15000000000",
    "0x500000000000016a",
    "wwn-0x5planted17000000",
    "50:06:0e:80:10:4a:00:18",
)


def planted() -> tuple[tuple[str, str], ...]:
    """Return lines, each with the secret in it that nobody may read afterwards."""
    named = ((line.format(f"Hunter{number}x7Q"), f"Hunter{number}x7Q") for number, line in enumerate(LINES))
    shaped = ((line, _core(line)) for line in SHAPED)
    return (*named, *shaped)


def _core(line: str) -> str:
    """Return the word of a line that is the secret, the whole line where it is nothing else."""
    marked = [word for word in line.split(" ") if "planted" in word.lower()]
    return marked[0] if marked else line
