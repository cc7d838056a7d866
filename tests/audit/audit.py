"""Known vulnerabilities of the packages that constraints.txt pins, by pip-audit.

Runs in the environment of requirements.txt, as `make audit` does::

    audit.py CONSTRAINTS [OPTION OF PIP-AUDIT]...

Exit status: 0 no findings but accepted ones, or the service could not be reached (the output says
which); 1 findings; 2 pip-audit failed. The tritonserver inside nvidia-pytriton is no Python
package, so no such service knows it: docs/security.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

ACCEPTED: Final[Mapping[str, str]] = {
    "CVE-2023-37365": "hnswlib 0.8.0 has the fix, though the advisory named no fixed version, and "
    "it takes an M above 10,000, where ours is a constant",
}
"""Id of an advisory, or an alias of it → why it does not concern us."""

_UNREACHABLE: Final = (
    "requests.exceptions.ConnectionError",
    "requests.exceptions.ProxyError",
    "requests.exceptions.SSLError",
    "requests.exceptions.ReadTimeout",
    "requests.exceptions.HTTPError",  # the service, or a proxy, refused
    "Could not connect",
)


def main(constraints: str, *options: str) -> int:
    """Audit ``constraints``, print the outcome, and return the exit status."""
    # OSV, as the other service calls every package unknown, and so free of fault, behind a mirror.
    command = ["-m", "pip_audit", "--vulnerability-service=osv", "--timeout=30"]
    command += ["--format=json", "--progress-spinner=off", "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [sys.executable, *command, f"--requirement={constraints}", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        if any(sign in done.stderr for sign in _UNREACHABLE):
            print("NOT AUDITED: the vulnerability service cannot be reached from here")
            return 0
        print(done.stderr, file=sys.stderr)
        return 2
    return _report(json.loads(done.stdout)["dependencies"])


def _report(packages: list[dict[str, Any]]) -> int:
    findings = 0
    for package in packages:
        if "skip_reason" in package:
            print(f"not audited: {package['name']} ({package['skip_reason']})")
        for advisory in package.get("vulns", []):
            name = f"{package['name']} {package['version']}: {advisory['id']}"
            if known := ACCEPTED.keys() & {advisory["id"], *advisory["aliases"]}:
                print(f"accepted: {name}: {ACCEPTED[known.pop()]}")
            else:
                findings += 1
                fixed = ", ".join(advisory["fix_versions"]) or "none yet"
                print(f"VULNERABLE: {name}, fixed in: {fixed}: {advisory['description'][:200]}")
    print(f"{len(packages)} packages, {findings} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
