"""The snippets of docs/clients.md as they stand, with the newest clients, against the servers that the page starts.

Each runs as a person would: in a folder of its own, with the page's `export` lines and no other setting. What comes out has to be
pictures, in files or at printed addresses. If a port of the page is taken on this machine, another one stands for it everywhere."""

import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

from common import size_and_format

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = os.environ["DARKROOM_PROGRAM"]
NODE = shutil.which(os.environ.get("DARKROOM_NODE") or "") or ""
NODE_FOLDER = os.environ.get("DARKROOM_NODE_FOLDER", "")  # has a node_modules with the clients
PATIENCE = 300


def blocks(file: str) -> list[tuple[str, str, str]]:
    """Heading, language and code of each block."""
    found, heading = [], ""
    for match in re.finditer(r"^## ([^\n]*)$|^```(\w+)\n(.*?)^```$", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2], match[3]))
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


def any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PORTS = {port: port if is_free(port) else any_port() for port in (8000, 8443)}
PAGE = blocks("docs/clients.md")
STARTS = [line.split("#")[0].strip() for line in PAGE[0][2].splitlines()]


def ported(code: str) -> str:
    for port, other in PORTS.items():
        code = code.replace(f":{port}", f":{other}")
    return code


class Home:
    """A folder with nothing in it, the programs that the page names, and no settings."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="darkroom-page-"))
        programs = self.folder / "bin"
        programs.mkdir()
        for name, program in [("darkroom", PROGRAM), ("python", sys.executable), ("node", NODE)]:
            if program:
                (programs / name).write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
                (programs / name).chmod(0o755)
        self.env = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, command: str) -> subprocess.Popen:
        command = ported(command)
        if PORTS[8000] != 8000:
            command += f" --listen 127.0.0.1:{PORTS[8000]}"
        with open(self.folder / "serve.log", "ab") as log:
            server = subprocess.Popen(["sh", "-c", "exec " + command], cwd=self.folder, env=self.env, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORTS[8000]}/healthz").close()
                return server
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(0.05)
        server.kill()
        raise AssertionError(f"{command}: " + (self.folder / "serve.log").read_text())

    def run(self, code: str) -> str:
        """What the shell prints."""
        done = subprocess.run(["sh", "-ec", code], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise AssertionError(f"{code}\n{done.stdout}{done.stderr}")
        return done.stdout

    def pictures(self, printed: str) -> list[bytes]:
        """Those in files of the folder, which go, and those at printed addresses."""
        found = []
        for file in self.folder.glob("fox.*"):
            found.append(file.read_bytes())
            file.unlink()
        trust = ssl.create_default_context()
        if (self.folder / "ca/ca.pem").exists():
            trust.load_verify_locations(self.folder / "ca/ca.pem")
        for url in set(re.findall(r"https?://[^\s\"'\\]+/files/[^\s\"'\\]+", printed)):
            with urllib.request.urlopen(url, context=trust) as answer:
                found.append(answer.read())
        return found


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.server = cls.home.start(STARTS[1])

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.assertEqual(cls(), cls.server.wait(60), 0)
        shutil.rmtree(cls.home.folder)

    def makes(self, heading: str, language: str):
        """Runs all blocks of a heading in a language, after the heading's settings."""
        settings = "".join(code for at, lang, code in PAGE if at == heading and lang == "sh" and code.startswith("export "))
        codes = [code for at, lang, code in PAGE if at == heading and lang == language and not code.startswith("export ")]
        self.assertTrue(codes, f"{heading} has no {language}")
        for code in codes:
            if language == "sh":
                printed = ""
                for line in ported(code).splitlines():
                    job = re.search(r'"id":\s*"(\w+)"', printed)
                    printed += self.home.run(line.replace("/ID/", f"/{job[1]}/") if job else line)
            else:
                program, folder, name = ("node", NODE_FOLDER, "page.mjs") if language == "js" else ("python", self.home.folder, "page.py")
                file = pathlib.Path(folder) / name
                file.write_text(ported(code))
                printed = self.home.run(f"{ported(settings)}\n{program} '{file}'")
                file.unlink()
            pictures = self.home.pictures(printed)
            self.assertTrue(pictures, f"no picture: {printed[:500]}")
            for picture in pictures:
                (width, height), kind = size_and_format(picture)
                self.assertGreaterEqual(min(width, height), 256)
                print(f"{heading}, {language}: {width}x{height} {kind}", flush=True)

    def test_openai_python(self):
        self.makes("OpenAI", "python")

    @unittest.skipUnless(NODE, "no Node.js")
    def test_openai_js(self):
        self.makes("OpenAI", "js")

    def test_fal_python(self):
        self.makes("fal", "python")

    @unittest.skipUnless(NODE, "no Node.js")
    def test_fal_js(self):
        self.makes("fal", "js")

    def test_replicate_python(self):
        self.makes("Replicate", "python")

    @unittest.skipUnless(NODE, "no Node.js")
    def test_replicate_js(self):
        self.makes("Replicate", "js")

    @unittest.skipUnless(shutil.which("curl"), "no curl")
    def test_own(self):
        self.makes("darkroom's own", "sh")

    def test_every_snippet_has_its_test(self):
        tested = {("OpenAI", "python"), ("OpenAI", "js"), ("fal", "python"), ("fal", "js"), ("Replicate", "python"),
                  ("Replicate", "js"), ("darkroom's own", "sh")}
        there = {(heading, lang) for heading, lang, code in PAGE[1:] if not code.startswith("export ")}
        self.assertEqual(there, tested)


class First(unittest.TestCase):
    """Before the page's second command: its first, which is the README's third."""

    def test_serve(self):
        start = next(code for heading, _, code in blocks("README.md") if heading == "Start").splitlines()[2]
        self.assertEqual(start.split("#")[0].strip().replace("cargo run --release --", "darkroom"), STARTS[0])
        home = Home()
        server = home.start(STARTS[0])
        server.terminate()
        self.assertEqual(server.wait(60), 0)
        shutil.rmtree(home.folder)


if __name__ == "__main__":
    unittest.main(verbosity=1)
