//! `cargo xtask clients`: the vendors' own clients, from their registries, against `darkroom serve`.

use std::{
    env, fs, io,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long the server may take to listen.
const PATIENCE: Duration = Duration::from_mins(1);

/// The key that all scripts use.
const KEY: &str = "test:clients-key";

/// A script, its installation, and the client's package where a script takes several.
struct Script {
    file: &'static str,
    with: With,
    client: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum With {
    PythonNew,
    PythonOld,
    Node,
}

const fn script(file: &'static str, with: With, client: &'static str) -> Script {
    Script { file, with, client }
}

const SCRIPTS: [Script; 14] = [
    script("python/test_openai.py", With::PythonNew, ""),
    script("python/test_openai.py", With::PythonOld, ""),
    script("python/test_webui.py", With::PythonNew, ""),
    script("python/test_fal.py", With::PythonNew, ""),
    script("python/test_fal.py", With::PythonOld, ""),
    script("python/test_replicate.py", With::PythonNew, ""),
    script("python/test_replicate.py", With::PythonOld, ""),
    script("node/openai.test.mjs", With::Node, "openai"),
    script("node/openai.test.mjs", With::Node, "openai-6"),
    script("node/fal.test.mjs", With::Node, ""),
    script("node/replicate.test.mjs", With::Node, ""),
    script("node/hosts.test.mjs", With::Node, ""),
    script("python/test_hosts.py", With::PythonNew, ""),
    script("python/test_page.py", With::PythonNew, ""),
];

/// Where clients are installed.
struct Installed {
    new: Option<PathBuf>,
    old: Option<PathBuf>,
    node: Option<PathBuf>,
}

impl Installed {
    fn program(&self, with: With) -> Option<&Path> {
        match with {
            With::PythonNew => self.new.as_deref(),
            With::PythonOld => self.old.as_deref(),
            With::Node => self.node.as_deref(),
        }
    }
}

/// Installs, starts the server, runs the scripts whose names hold `only`.
pub(crate) fn run(root: &Path, target: &Path, only: &str) -> bool {
    println!("== clients: cargo xtask clients {only}");
    match all(root, target, only) {
        Ok(passed) => passed,
        Err(error) => {
            println!("failed: clients ({error}); again with: cargo xtask clients");
            false
        }
    }
}

fn all(root: &Path, target: &Path, only: &str) -> io::Result<bool> {
    let folder = target.join("clients");
    let scripts = root.join("tests/clients");
    fs::create_dir_all(&folder)?;
    let installed = Installed {
        new: python(&scripts.join("python/requirements-new.txt"), &folder.join("python-new"))?,
        old: python(&scripts.join("python/requirements-old.txt"), &folder.join("python-old"))?,
        node: node(&scripts.join("node"), &folder.join("node"))?,
    };
    let data = folder.join("data");
    let _ = fs::remove_dir_all(&data); // of the run before
    let mut server = Server::start(target, &data)?;
    let mut passed = true;
    let (mut ran, mut failed) = (0, 0);
    for script in SCRIPTS.iter().filter(|script| script.file.contains(only) && scripts.join(script.file).exists()) {
        let Some(program) = installed.program(script.with) else {
            println!("skipped: {} (see above)", script.file);
            continue;
        };
        let good = script.run(&installed, program, &scripts, &folder, &server)?;
        ran += 1;
        failed += usize::from(!good);
        passed &= good;
    }
    if !server.stop()? {
        println!("the server did not end well; what it said is in {}", data.with_extension("log").display());
        passed = false;
    }
    println!("clients: {} scripts passed, {failed} failed", ran - failed);
    Ok(passed)
}

impl Script {
    fn run(
        &self,
        installed: &Installed,
        program: &Path,
        scripts: &Path,
        folder: &Path,
        server: &Server,
    ) -> io::Result<bool> {
        let node = installed.program(With::Node);
        let path = scripts.join(self.file);
        let mut command = Command::new(program);
        if self.with == With::Node {
            // Packages are looked for beside the script.
            let copy = folder.join("node").join(path.file_name().unwrap_or_default());
            fs::copy(&path, &copy)?;
            command.arg("--test").arg(copy).current_dir(folder.join("node"));
        } else {
            command.arg(&path).current_dir(scripts.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
        }
        let ca = server.data.join("dev-ca/ca.pem");
        let host = format!("localhost:{}", server.tls_port);
        command
            .env("DARKROOM_URL", format!("http://127.0.0.1:{}", server.port))
            .env("DARKROOM_TLS_URL", format!("https://{host}"))
            .env("DARKROOM_CA", &ca)
            .env("DARKROOM_KEY", KEY)
            .env("CLIENT", self.client)
            // For what starts a server itself and runs others' programs.
            .env("DARKROOM_PROGRAM", &server.program)
            .env("DARKROOM_NODE", node.unwrap_or(Path::new("")))
            .env("DARKROOM_NODE_FOLDER", folder.join("node"))
            .env("NODE_EXTRA_CA_CERTS", &ca)
            // What the vendors' clients read themselves.
            .env("FAL_KEY", KEY)
            .env("FAL_RUN_HOST", format!("{host}/fal/run"))
            .env("FAL_QUEUE_RUN_HOST", format!("{host}/fal/queue"))
            .env("REPLICATE_API_TOKEN", KEY)
            .envs(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, "")));
        if self.with != With::Node {
            command.env("SSL_CERT_FILE", &ca);
        }
        let version = match (self.with, self.client) {
            (With::PythonNew, _) => "new",
            (With::PythonOld, _) => "old",
            (With::Node, "") => "node",
            (With::Node, client) => client,
        };
        println!("== {} ({version})", self.file);
        let status = command.status()?;
        if !status.success() {
            println!(
                "failed: {} ({version}); the server's log: {}",
                self.file,
                server.data.with_extension("log").display()
            );
        }
        Ok(status.success())
    }
}

/// A virtual environment with a list of packages; its python, or `None` if there is no Python that can.
fn python(requirements: &Path, folder: &Path) -> io::Result<Option<PathBuf>> {
    let program = folder.join("bin/python");
    let list = fs::read_to_string(requirements)?;
    let stamp = folder.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == list) {
        return Ok(Some(program));
    }
    let fits = ["python3", "python3.12", "python3.11", "python3.10", "python"].into_iter().find(|python| {
        let check = "import sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] < (3, 14))";
        Command::new(python).args(["-c", check]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    let Some(python) = fits else {
        println!("clients: no Python 3.9 to 3.13 with venv; its clients are left out");
        return Ok(None);
    };
    let _ = fs::remove_dir_all(folder);
    let made = succeeds(Command::new(python).args(["-m", "venv"]).arg(folder))?
        && succeeds(
            Command::new(&program)
                .args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"])
                .arg(requirements),
        )?;
    if !made {
        return Err(io::Error::other(format!("{} could not be installed", requirements.display())));
    }
    fs::write(stamp, list)?;
    Ok(Some(program))
}

/// A folder with npm's packages; the node that came with them, or `None` if there is no npm.
fn node(package: &Path, folder: &Path) -> io::Result<Option<PathBuf>> {
    let list = fs::read_to_string(package.join("package.json"))?;
    let stamp = folder.join("installed.txt");
    let program = folder.join("node_modules/.bin/node");
    let system = PathBuf::from("node");
    let found = |program: PathBuf| if program.exists() { program } else { system };
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == list) {
        return Ok(Some(found(program)));
    }
    if !Command::new("npm")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        println!("clients: no npm; its clients are left out");
        return Ok(None);
    }
    fs::create_dir_all(folder)?;
    fs::write(folder.join("package.json"), &list)?;
    let mut install = Command::new("npm");
    install.args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]).current_dir(folder);
    if !succeeds(&mut install)? {
        return Err(io::Error::other("npm could not install the clients"));
    }
    fs::write(stamp, list)?;
    Ok(Some(found(program)))
}

fn succeeds(command: &mut Command) -> io::Result<bool> {
    Ok(command.status()?.success())
}

/// `darkroom serve` with a folder of its own.
struct Server {
    child: Child,
    program: PathBuf,
    data: PathBuf,
    port: u16,
    tls_port: u16,
}

impl Server {
    fn start(target: &Path, data: &Path) -> io::Result<Self> {
        let program = target.join("debug/darkroom");
        fs::create_dir_all(data)?;
        let (port, tls_port) = (free_port()?, free_port()?);
        let log = fs::File::create(data.with_extension("log"))?;
        // The CA is also for the hosts that clients of others have built in.
        let mut ca = Command::new(&program);
        ca.arg("dev-ca").arg(data.join("dev-ca")).stdout(log.try_clone()?).stderr(log.try_clone()?);
        if !succeeds(ca.args(["--name", "api.openai.com", "--name", "api.replicate.com"]))? {
            return Err(io::Error::other("darkroom dev-ca failed"));
        }
        let child = Command::new(&program)
            .arg("serve")
            .args(["--listen", &format!("127.0.0.1:{port}"), "--tls-listen", &format!("127.0.0.1:{tls_port}")])
            .arg("--tls-dev")
            .arg(data.join("dev-ca"))
            .args(["--api-key", KEY, "--allow-private-webhooks", "--allow-private-fetches"])
            .arg("--data-dir")
            .arg(data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self { child, program, data: data.to_owned(), port, tls_port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", tls_port)).is_err() || TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let said = fs::read_to_string(data.with_extension("log")).unwrap_or_default();
                return Err(io::Error::other(format!("the server does not listen; it said:\n{said}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Asks it to end; whether it did, and well.
    fn stop(&mut self) -> io::Result<bool> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Where cargo builds.
pub(crate) fn target(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
