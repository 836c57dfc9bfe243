"""deploy/kubernetes and deploy/docker: they render, they fit Kubernetes' schemas, and what must
hold in them holds; the launcher and the manifests start the same binaries with the same flags.

    kubernetes_test.py Invariants|Flags|Image|Rendering|Schemas

Needs no network. Without its tool a part is skipped, with exit status 77: kubectl for Rendering,
FACET_MANIFEST_PYTHON (a Python that has kubernetes-validate, see tests/run.sh) for Schemas.
Run in the root of the source tree; FACET_BIN_DIR has the binaries.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.abspath("deploy/local"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cluster  # noqa: E402  (from deploy/local)
import manifests  # noqa: E402
from manifests import find, flags_of, help_flags, port_of, read_base, render  # noqa: E402

SLACK_S = 10  # for a shutdown after its drain


def pods(objects):
    return {
        "router": find(objects, "Deployment")["spec"]["template"],
        "worker": find(objects, "StatefulSet")["spec"]["template"],
    }


def containers(objects):
    return [c for pod in pods(objects).values() for c in pod["spec"]["containers"]]


class Manifests:
    """What must hold, of `self.objects`."""

    def test_one_container_per_rank(self):
        ranks = pods(self.objects)["worker"]["spec"]["containers"]
        flags = [flags_of(c) for c in ranks]
        self.assertEqual([f["rank"] for f in flags], [str(i) for i in range(len(ranks))])
        self.assertEqual({f["world"] for f in flags}, {str(len(ranks))})
        leader_port = flags[0]["listen"].rpartition(":")[2]
        for follower in flags[1:]:  # one network namespace: the leader is on loopback
            self.assertEqual(follower["leader"], f"127.0.0.1:{leader_port}")

    def test_ranks_agree_on_everything_else(self):
        own = {"rank", "listen", "leader", "metrics_port"}
        ranks = pods(self.objects)["worker"]["spec"]["containers"]
        common = [{k: v for k, v in flags_of(c).items() if k not in own} for c in ranks]
        for flags in common[1:]:
            self.assertEqual(flags, common[0])
        users = {str(c["securityContext"].get("runAsUser")) for c in ranks}
        self.assertEqual(users, {"None"}, "the pod's user is everybody's: a memory file is shared")

    def test_every_container_has_every_probe_on_a_port_it_listens_to(self):
        for container in containers(self.objects):
            flags = flags_of(container)
            metrics = int(flags["metrics_port"])
            grpc = int(flags["listen"].rpartition(":")[2]) if "listen" in flags else None
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[name]
                with self.subTest(container=container["name"], probe=name):
                    if "grpc" in probe:
                        self.assertEqual(probe["grpc"]["port"], grpc)
                    else:
                        self.assertEqual(probe["httpGet"]["path"], "/healthz")
                        self.assertEqual(port_of(container, probe["httpGet"]["port"]), metrics)
            self.assertIn("httpGet", container["livenessProbe"])
            if grpc:
                self.assertIn("grpc", container["readinessProbe"])

    def test_readiness_asks_for_the_service_that_tells_it(self):
        services = {"router": "facet.v1.Inference", "worker": "facet.v1.Leader"}
        for kind, pod in pods(self.objects).items():
            probe = pod["spec"]["containers"][0]["readinessProbe"]
            self.assertEqual(probe["grpc"]["service"], services[kind])

    def test_ports_of_a_pod_differ(self):
        for pod in pods(self.objects).values():
            ports = [p for c in pod["spec"]["containers"] for p in c["ports"]]
            numbers = [p["containerPort"] for p in ports]
            names = [p["name"] for p in ports]
            self.assertEqual(len(numbers), len(set(numbers)), numbers)
            self.assertEqual(len(names), len(set(names)), names)

    def test_grace_is_longer_than_all_drains(self):
        for pod in pods(self.objects).values():
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            for container in pod["spec"]["containers"]:
                hook = container.get("lifecycle", {}).get("preStop")
                wait = float(hook["exec"]["command"][1]) if hook else 0
                drain = float(flags_of(container)["drain_s"])
                self.assertGreaterEqual(grace, wait + drain + SLACK_S, container["name"])

    def test_routers_and_followers_outwait_those_who_need_them(self):
        spec = {kind: pod["spec"] for kind, pod in pods(self.objects).items()}
        for container in [spec["router"]["containers"][0], *spec["worker"]["containers"][1:]]:
            hook = container["lifecycle"]["preStop"]["exec"]["command"]
            self.assertEqual(hook[0], "sleep")
            self.assertGreater(float(hook[1]), 0)

    def test_disruption_budgets_cover_both(self):
        budgets = [o for o in self.objects if o["kind"] == "PodDisruptionBudget"]
        for kind, pod in pods(self.objects).items():
            labels = pod["metadata"]["labels"]
            covering = [
                b for b in budgets
                if b["spec"]["selector"]["matchLabels"].items() <= labels.items()
            ]
            self.assertEqual(len(covering), 1, kind)

    def test_workers_have_whole_processors_of_their_own(self):
        for container in pods(self.objects)["worker"]["spec"]["containers"]:
            resources = container["resources"]
            self.assertEqual(resources["requests"], resources["limits"])
            self.assertEqual(resources["limits"]["cpu"], flags_of(container)["threads"])

    def test_routers_find_every_leader(self):
        name, _, port = flags_of(pods(self.objects)["router"]["spec"]["containers"][0])[
            "leaders"
        ].partition(":")
        service = find(self.objects, "Service", name)["spec"]
        self.assertEqual(service["clusterIP"], "None")
        pod = pods(self.objects)["worker"]
        self.assertLessEqual(service["selector"].items(), pod["metadata"]["labels"].items())
        listen = flags_of(pod["spec"]["containers"][0])["listen"]
        self.assertEqual(listen, f"0.0.0.0:{port}")
        self.assertEqual(service["ports"][0]["port"], int(port))
        self.assertEqual(find(self.objects, "StatefulSet")["spec"]["serviceName"], name)

    def test_prometheus_finds_every_process(self):
        for pod in pods(self.objects).values():
            self.assertEqual(pod["metadata"]["annotations"]["prometheus.io/scrape"], "true")
            for container in pod["spec"]["containers"]:
                named = [p["name"] for p in container["ports"] if p["name"].startswith("metrics")]
                self.assertEqual(len(named), 1)
                self.assertEqual(
                    port_of(container, named[0]), int(flags_of(container)["metrics_port"])
                )

    def test_nothing_has_more_rights_than_it_needs(self):
        for pod in pods(self.objects).values():
            self.assertTrue(pod["spec"]["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["spec"]["automountServiceAccountToken"])
            for container in pod["spec"]["containers"]:
                context = container["securityContext"]
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertEqual(context["capabilities"]["drop"], ["ALL"])

    def test_models_are_read_only_and_ranks_share_memory(self):
        for pod in pods(self.objects).values():
            for container in pod["spec"]["containers"]:
                mount = next(m for m in container["volumeMounts"] if m["name"] == "models")
                self.assertTrue(mount["readOnly"])
        worker = pods(self.objects)["worker"]["spec"]
        volume = next(v for v in worker["volumes"] if v["name"] == "memory")
        self.assertEqual(volume["emptyDir"]["medium"], "Memory")
        for container in worker["containers"]:
            self.assertIn(volume["name"], [m["name"] for m in container["volumeMounts"]])

    def test_ranks_share_packed_weights_on_disk_within_the_volumes_limit(self):
        worker = pods(self.objects)["worker"]["spec"]
        volume = next(v["emptyDir"] for v in worker["volumes"] if v["name"] == "packed")
        self.assertNotIn("medium", volume)
        limit = int(re.fullmatch(r"(\d+)Gi", volume["sizeLimit"]).group(1)) << 30
        for container in worker["containers"]:
            flags = flags_of(container)
            mount = next(m for m in container["volumeMounts"] if m["name"] == "packed")
            self.assertEqual(flags["packed_cache"], mount["mountPath"])
            self.assertLess(int(flags["packed_cache_bytes"]), limit)


class Invariants(Manifests, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = read_base()


class Rendering(Manifests, unittest.TestCase):
    """The same of what kubectl makes of the base, and that its references lead somewhere."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("kubectl"):
            raise unittest.SkipTest("there is no kubectl: nothing was rendered")
        cls.objects = render("base")

    def test_everything_is_there(self):
        wanted = sorted((o["kind"], o["metadata"]["name"]) for o in read_base())
        rendered = sorted(
            (o["kind"], o["metadata"]["name"]) for o in self.objects if o["kind"] != "ConfigMap"
        )
        self.assertEqual(rendered, wanted)

    def test_the_model_comes_from_the_one_config_map(self):
        config = find(self.objects, "ConfigMap")
        for container in containers(self.objects):
            (variable,) = container["env"]
            reference = variable["valueFrom"]["configMapKeyRef"]
            self.assertEqual(reference["name"], config["metadata"]["name"])
            self.assertIn(reference["key"], config["data"])
            self.assertEqual(flags_of(container)["model"], f"$({variable['name']})")

    def test_every_container_runs_the_image(self):
        for container in containers(self.objects):
            self.assertRegex(container["image"], r"^facet:")


class Schemas(unittest.TestCase):
    def test_objects_fit_the_schemas(self):
        objects = render("base") if shutil.which("kubectl") else read_base()
        manifests.validate(self, objects)


class Flags(unittest.TestCase):
    def started(self):
        """{binary: [{flag: value} of each process]} in the manifests and by the launcher."""
        manifests = {}
        for container in containers(read_base()):
            manifests.setdefault(container["command"][0], []).append(flags_of(container))
        launcher = {}
        local = cluster.Cluster("m.gguf", tp=2, replicas=2, routers=2)
        for _, command, _ in local.commands("/run"):
            flags = flags_of({"args": command[1:]})
            launcher.setdefault(os.path.basename(command[0]), []).append(flags)
        return manifests, launcher

    def test_binaries_know_every_flag(self):
        for started in self.started():
            for binary, processes in started.items():
                for flags in processes:
                    self.assertLessEqual(set(flags), help_flags(binary), binary)

    def test_launcher_and_manifests_give_the_same_flags(self):
        manifests, launcher = self.started()
        self.assertEqual(set(manifests), {"facet-router", "facet-worker"})
        self.assertEqual(set(launcher), set(manifests))
        for binary in manifests:
            # Locally packed weights lie where a user's caches do, which is the default.
            of_pods = {"packed_cache", "packed_cache_bytes"}
            of_launcher = {"host_share"}  # nobody knows before who will share a node
            names = [
                {name for flags in started[binary] for name in flags} - of_pods - of_launcher
                for started in (manifests, launcher)
            ]
            self.assertEqual(*names, binary)


def debian_packages(name):
    """A list of packages.sh."""
    script = f'source deploy/local/packages.sh; printf "%s\\n" "${{{name}[@]}}"'
    return subprocess.run(
        ["bash", "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()


def owners(paths):
    """The packages that installed the files; they may be known under / or under /usr."""
    candidates = {path: {path, "/usr" + path, path.removeprefix("/usr")} for path in paths}
    result = subprocess.run(
        ["dpkg", "-S", *set().union(*candidates.values())],
        capture_output=True, text=True, check=False,
    )
    owner = {line.rpartition(" ")[2]: line.split(":")[0] for line in result.stdout.splitlines()}
    names = set()
    for path, known_as in candidates.items():
        found = {owner[name] for name in known_as if name in owner}
        assert found, f"no package owns {path}"
        names |= found
    return names


def with_dependencies(packages):
    """`packages` and all that apt installs with them, as far as installed here."""
    known, pending = set(), list(packages)
    while pending:
        name = pending.pop()
        if name in known:
            continue
        known.add(name)
        result = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Depends},${Pre-Depends}", name],
            capture_output=True, text=True, check=False,
        )
        pending += re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]+)", result.stdout)
    return known


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open("deploy/docker/Dockerfile", encoding="utf-8") as file:
            cls.text = file.read()
        cls.copies = [
            line.split() for line in re.findall(r"^COPY (?!--from)(.*)$", cls.text, re.MULTILINE)
        ]
        cls.copied = [source for copy in cls.copies for source in copy[:-1]]

    def test_what_it_copies_exists(self):
        for source in self.copied:
            self.assertTrue(os.path.exists(source), source)

    def test_it_copies_every_room_of_the_build(self):
        rooms = {path.split("/")[0] for path in glob.glob("*/CMakeLists.txt")}
        rooms |= {path.split("/")[0] for path in glob.glob("*/*/CMakeLists.txt")}
        self.assertLessEqual(rooms - {"tests", "build"}, set(self.copied))

    def test_its_context_has_what_it_copies(self):
        with open("deploy/docker/Dockerfile.dockerignore", encoding="utf-8") as file:
            allowed = [line[1:] for line in file.read().split() if line.startswith("!")]
        for source in self.copied:
            self.assertTrue(any(f"{source}/".startswith(f"{a}/") for a in allowed), source)

    def copy_to(self, folder):
        """What the stages that build find in their work folder."""
        for *sources, destination in self.copies:
            to = os.path.join(folder, destination)
            os.makedirs(to, exist_ok=True)
            for source in sources:
                if os.path.isdir(source):  # its content, as COPY takes it
                    shutil.copytree(source, to, dirs_exist_ok=True)
                else:
                    shutil.copy(source, to)

    def test_what_it_copies_is_all_that_its_targets_are_built_from(self):
        builds = re.findall(
            r"configure_build (\S+) && \\\s+run_build \1 (.*) && \\$", self.text, re.MULTILINE
        )
        self.assertEqual([build for build, _ in builds], ["build", "build-cuda"])
        with tempfile.TemporaryDirectory() as folder:
            self.copy_to(folder)
            for build, targets in builds:
                # The toolkit is only in the second stage.
                arguments = "-DFACET_CUDA=OFF" if build == "build" else ""
                script = f"source deploy/local/build.sh; configure_build {build} {arguments}"
                with self.subTest(build=build):
                    configured = subprocess.run(
                        ["bash", "-euc", script],
                        cwd=folder, capture_output=True, text=True, check=False,
                    )
                    self.assertEqual(configured.returncode, 0, configured.stderr)
                    if "CUDA: no nvcc found" in configured.stderr:
                        continue  # nor is it here
                    # A dry run: every source is there, or known how to make.
                    planned = subprocess.run(
                        ["ninja", "-C", build, "-n", *targets.split()],
                        cwd=folder, capture_output=True, text=True, check=False,
                    )
                    self.assertEqual(planned.returncode, 0, planned.stdout + planned.stderr)

    def test_the_image_for_gpus_is_the_same_and_the_module(self):
        stages = re.split(r"^FROM ", self.text, flags=re.MULTILINE)
        (cuda,) = [s for s in stages if s.startswith("runtime AS cuda")]
        (built,) = [s for s in stages if s.startswith("build AS build-cuda")]
        self.assertIn("run_build build-cuda facet_cuda", built)
        # Beside facet-worker, where it is looked for.
        binaries = re.search(r"^COPY --from=build /image/ (\S+)$", self.text, re.MULTILINE)
        module = re.search(r"^COPY --from=build-cuda /image-cuda/ (\S+)$", cuda, re.MULTILINE)
        self.assertEqual(module.group(1), binaries.group(1))
        self.assertTrue(stages[-1].startswith("runtime\n"), "without a target: no CUDA")

    def test_its_packages_are_the_lists_of_packages_sh(self):
        self.assertEqual(
            re.findall(r"install_packages (.*?)(?: &&.*)?$", self.text, re.MULTILINE),
            ['"${build_packages[@]}"', '"${runtime_packages[@]}"'],
        )
        self.assertNotIn("apt-get", self.text)

    def test_it_builds_and_installs_the_three_binaries(self):
        binaries = ["facet", "facet-router", "facet-worker"]
        self.assertIn("run_build build " + " ".join(binaries), self.text)
        started = {c["command"][0] for c in containers(read_base())}
        self.assertLessEqual(started, set(binaries))

    def test_the_runtime_packages_hold_every_library(self):
        libraries = set()
        paths = [os.path.join(manifests.BIN, b) for b in ("facet", "facet-router", "facet-worker")]
        paths += glob.glob(os.path.join(manifests.BIN, "libfacet_cuda.so"))  # where there is nvcc
        for path in paths:
            listing = subprocess.run(
                ["ldd", path],
                check=True, capture_output=True, text=True,
            ).stdout
            self.assertNotIn("not found", listing)
            libraries |= set(re.findall(r"=> (/\S+)", listing))
        self.assertGreater(len(libraries), 10)
        # Sanitized binaries load their run-time libraries too, which no image has.
        needed = {name for name in owners(libraries) if not re.match(r"lib[a-z]+san\d", name)}
        self.assertLessEqual(needed, with_dependencies(debian_packages("runtime_packages")))

    def test_it_runs_as_the_user_of_the_pods(self):
        (user,) = re.findall(r"^USER (\d+):(\d+)$", self.text, re.MULTILINE)
        for pod in pods(read_base()).values():
            context = pod["spec"]["securityContext"]
            self.assertEqual(user, (str(context["runAsUser"]), str(context["runAsGroup"])))


if __name__ == "__main__":
    sys.exit(manifests.main())
