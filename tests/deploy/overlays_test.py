"""The overlays of deploy/kubernetes: ranks on GPUs, and groups whose ranks are pods of their own.

    overlays_test.py OnePodOnGpus|Pods|PodsOnGpus|Schemas

Needs kubectl, for Schemas also FACET_MANIFEST_PYTHON (see tests/run.sh); a part that lacks its tool
is skipped, with exit status 77. Run in the root of the source tree; FACET_BIN_DIR has the binaries.
"""

import glob
import os
import re
import shutil
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import manifests  # noqa: E402
from manifests import find, find_all, flags_of, help_flags, port_of, render  # noqa: E402

OVERLAYS = ["gpu", "pods", "pods-gpu"]
GPU = "nvidia.com/gpu"
JOIN_S = 300  # --join_s of a worker, unless it is told another
SLACK_S = 10  # for a shutdown after its drain


def pod_of(stateful_set):
    return stateful_set["spec"]["template"]


def workers(objects):
    """Every worker's container, with its pod."""
    return [(c, pod_of(s)) for s in find_all(objects, "StatefulSet")
            for c in pod_of(s)["spec"]["containers"]]


def variables(container):
    return {v["name"]: v for v in container["env"]}


class Overlay:
    """What must hold of the overlay `folder`."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("kubectl"):
            raise unittest.SkipTest("there is no kubectl: nothing was rendered")
        cls.objects = render(cls.folder)
        cls.base = render("base")

    def test_routers_models_and_budgets_are_the_bases(self):
        for kind in ("PersistentVolumeClaim", "PodDisruptionBudget", "ConfigMap"):
            with self.subTest(kind=kind):
                self.assertEqual(find_all(self.objects, kind), find_all(self.base, kind))
        router, base = (
            find(o, "Deployment")["spec"]["template"]["spec"]["containers"][0]
            for o in (self.objects, self.base)
        )
        self.assertEqual(dict(router, image=""), dict(base, image=""))

    def test_binaries_know_every_flag(self):
        for container, _ in workers(self.objects):
            self.assertLessEqual(set(flags_of(container)), help_flags("facet-worker"))

    def test_every_variable_that_arguments_name_is_there(self):
        for container, _ in workers(self.objects):
            named = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
            self.assertLessEqual(named, set(variables(container)))

    def test_probes_ask_what_listens_and_wait_for_the_group(self):
        for container, _ in workers(self.objects):
            flags = flags_of(container)
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container[name]
                with self.subTest(container=container["name"], probe=name):
                    if "grpc" in probe:
                        self.assertEqual(probe["grpc"]["service"], "facet.v1.Leader")
                        self.assertEqual(flags["listen"], f"0.0.0.0:{probe['grpc']['port']}")
                    else:
                        self.assertEqual(probe["httpGet"]["path"], "/healthz")
                        port = port_of(container, probe["httpGet"]["port"])
                        self.assertEqual(port, int(flags["metrics_port"]))
            start = container["startupProbe"]
            patience = start["periodSeconds"] * start["failureThreshold"]
            self.assertGreater(patience, float(flags.get("join_s", JOIN_S)))
            # The canary of the group decides over a leader's readiness.
            self.assertEqual("grpc" in container["readinessProbe"], "listen" in flags)

    def test_grace_is_longer_than_the_drain(self):
        for container, pod in workers(self.objects):
            hook = container.get("lifecycle", {}).get("preStop")
            wait = float(hook["exec"]["command"][1]) if hook else 0
            self.assertEqual(wait > 0, flags_of(container)["rank"] != "0", "followers go last")
            drain = float(flags_of(container)["drain_s"])
            self.assertGreaterEqual(
                pod["spec"]["terminationGracePeriodSeconds"], wait + drain + SLACK_S
            )

    def test_nothing_has_more_rights_than_it_needs(self):
        for container, pod in workers(self.objects):
            self.assertTrue(pod["spec"]["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["spec"]["automountServiceAccountToken"])
            context = container["securityContext"]
            self.assertFalse(context["allowPrivilegeEscalation"])
            self.assertTrue(context["readOnlyRootFilesystem"])
            self.assertEqual(context["capabilities"]["drop"], ["ALL"])


class OnGpus(Overlay):
    """What must hold of ranks that compute on GPUs."""

    def test_every_rank_has_one_gpu_and_insists_on_it(self):
        for container, pod in workers(self.objects):
            resources = container["resources"]
            self.assertEqual(resources["limits"][GPU], "1")
            self.assertEqual(resources["requests"], resources["limits"])
            # The plugin shows a container its own GPU only: number 0, whatever the rank.
            self.assertEqual(flags_of(container)["device"], "cuda")
            self.assertIn(GPU, [t["key"] for t in pod["spec"]["tolerations"]])

    def test_routers_take_no_gpu(self):
        pod = find(self.objects, "Deployment")["spec"]["template"]["spec"]
        self.assertNotIn(GPU, pod["containers"][0]["resources"]["limits"])

    def test_everything_runs_the_image_with_the_module(self):
        images = {c["image"] for c, _ in workers(self.objects)}
        images.add(find(self.objects, "Deployment")["spec"]["template"]["spec"]["containers"][0][
            "image"])
        self.assertEqual(images, {"facet:latest-cuda"})

    def test_nccl_is_told_the_interface_that_leads_to_the_other_ranks(self):
        for container, _ in workers(self.objects):
            interface = variables(container)["NCCL_SOCKET_IFNAME"]["value"]
            self.assertEqual(interface, self.interface)

    def test_compiled_kernels_are_kept_where_the_container_may_write(self):
        for container, _ in workers(self.objects):
            path = variables(container)["CUDA_CACHE_PATH"]["value"]
            writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            self.assertTrue(any(path.startswith(f"{m}/") for m in writable), path)


class OnePodOnGpus(OnGpus, unittest.TestCase):
    folder = "gpu"
    interface = "lo"  # containers of one pod

    def test_ranks_are_those_of_the_base_but_for_the_device(self):
        for (container, _), (base, _) in zip(workers(self.objects), workers(self.base), strict=True):
            self.assertEqual(flags_of(container), {**flags_of(base), "device": "cuda"})
            for name in ("ports", "startupProbe", "readinessProbe", "volumeMounts"):
                self.assertEqual(container[name], base[name])


class GroupsOfPods(Overlay):
    """What must hold of groups whose ranks are pods."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.groups = {}
        for stateful_set in find_all(cls.objects, "StatefulSet"):
            labels = pod_of(stateful_set)["metadata"]["labels"]
            role = labels["app.kubernetes.io/component"]
            cls.groups.setdefault(labels["facet-group"], {})[role] = stateful_set

    def members(self, selector):
        """The (group, role) of every stateful set whose pods the selector matches."""
        return {
            (group, role)
            for group, roles in self.groups.items() for role, stateful_set in roles.items()
            if selector.items() <= pod_of(stateful_set)["metadata"]["labels"].items()
        }

    def test_the_bases_groups_are_gone_and_there_are_others(self):
        names = {s["metadata"]["name"] for s in find_all(self.objects, "StatefulSet")}
        self.assertNotIn("facet-worker", names)
        self.assertEqual(sorted(self.groups), ["0", "1"])
        for roles in self.groups.values():
            self.assertEqual(sorted(roles), ["follower", "leader"])

    def test_ranks_are_all_there_and_told_by_ordinals(self):
        for roles in self.groups.values():
            leader, follower = (roles[r]["spec"] for r in ("leader", "follower"))
            ranks = [pod_of(roles[r])["spec"]["containers"][0] for r in ("leader", "follower")]
            self.assertEqual(leader["replicas"], 1)
            self.assertEqual(flags_of(ranks[0])["rank"], "0")
            self.assertEqual(follower["ordinals"]["start"], 1)
            self.assertEqual(flags_of(ranks[1])["rank"], "$(FACET_RANK)")
            rank = variables(ranks[1])["FACET_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
            self.assertEqual(rank, "metadata.labels['apps.kubernetes.io/pod-index']")
            for container in ranks:
                self.assertEqual(flags_of(container)["world"], str(1 + follower["replicas"]))

    def test_ranks_agree_on_everything_else(self):
        own = {"rank", "listen", "leader"}
        common = [{k: v for k, v in flags_of(c).items() if k not in own}
                  for c, _ in workers(self.objects)]
        for flags in common[1:]:
            self.assertEqual(flags, common[0])
        self.assertIn(common[0]["collective"], ("auto", "tcp", "nccl"))

    def test_followers_find_their_own_leader_by_its_name(self):
        for group, roles in self.groups.items():
            follower = pod_of(roles["follower"])["spec"]["containers"][0]
            source = variables(follower)["FACET_GROUP"]["valueFrom"]["fieldRef"]["fieldPath"]
            self.assertEqual(source, "metadata.labels['facet-group']")
            address = flags_of(follower)["leader"].replace("$(FACET_GROUP)", group)
            pod, service, port = re.fullmatch(r"([^.]+)\.([^:]+):(\d+)", address).groups()
            leader = roles["leader"]
            self.assertEqual(pod, f"{leader['metadata']['name']}-0")
            self.assertEqual(service, leader["spec"]["serviceName"])
            listen = flags_of(pod_of(leader)["spec"]["containers"][0])["listen"]
            self.assertEqual(listen, f"0.0.0.0:{port}")

    def test_a_groups_service_names_its_pods_before_they_are_ready(self):
        for group, roles in self.groups.items():
            (name,) = {s["spec"]["serviceName"] for s in roles.values()}
            service = find(self.objects, "Service", name)["spec"]
            self.assertEqual(service["clusterIP"], "None")
            self.assertTrue(service["publishNotReadyAddresses"])
            wanted = {(group, "leader"), (group, "follower")}
            self.assertEqual(self.members(service["selector"]), wanted)

    def test_stateful_sets_select_their_own_pods_only(self):
        for group, roles in self.groups.items():
            for role, stateful_set in roles.items():
                selector = stateful_set["spec"]["selector"]["matchLabels"]
                self.assertEqual(self.members(selector), {(group, role)})

    def test_routers_find_the_leaders_and_only_them(self):
        router = find(self.objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        name, _, port = flags_of(router)["leaders"].partition(":")
        service = find(self.objects, "Service", name)["spec"]
        self.assertEqual(self.members(service["selector"]), {(g, "leader") for g in self.groups})
        for roles in self.groups.values():
            leader = pod_of(roles["leader"])["spec"]["containers"][0]
            self.assertEqual(flags_of(leader)["listen"], f"0.0.0.0:{port}")

    def test_one_budget_covers_all_ranks_so_that_one_group_goes_at_a_time(self):
        budgets = [
            b for b in find_all(self.objects, "PodDisruptionBudget")
            if self.members(b["spec"]["selector"]["matchLabels"])
        ]
        self.assertEqual(len(budgets), 1)
        self.assertEqual(budgets[0]["spec"]["maxUnavailable"], 1)
        covered = self.members(budgets[0]["spec"]["selector"]["matchLabels"])
        self.assertEqual(len(covered), 2 * len(self.groups))

    def test_only_the_group_reaches_the_ports_of_its_data(self):
        for group in self.groups:
            policy = find(self.objects, "NetworkPolicy", f"facet-ranks-{group}")["spec"]
            whole = {(group, "leader"), (group, "follower")}
            self.assertEqual(self.members(policy["podSelector"]["matchLabels"]), whole)
            inside, outside = policy["ingress"]
            (peer,) = inside["from"]
            self.assertEqual(self.members(peer["podSelector"]["matchLabels"]), whole)
            self.assertNotIn("ports", inside)
            open_ports = {p["port"] for p in outside["ports"]}
            leader = pod_of(self.groups[group]["leader"])["spec"]["containers"][0]
            self.assertEqual(open_ports, {p["containerPort"] for p in leader["ports"]})


class Pods(GroupsOfPods, unittest.TestCase):
    folder = "pods"

    def test_ranks_have_whole_processors_of_their_own(self):
        for container, _ in workers(self.objects):
            resources = container["resources"]
            self.assertEqual(resources["requests"], resources["limits"])
            self.assertEqual(resources["limits"]["cpu"], flags_of(container)["threads"])


class PodsOnGpus(GroupsOfPods, OnGpus, unittest.TestCase):
    folder = "pods-gpu"
    interface = "eth0"  # the pods' network

    def test_ranks_are_those_on_cpus_but_for_the_device(self):
        cpu = {s["metadata"]["name"]: s for s in find_all(render("pods"), "StatefulSet")}
        for stateful_set in find_all(self.objects, "StatefulSet"):
            (container,) = pod_of(stateful_set)["spec"]["containers"]
            (base,) = pod_of(cpu[stateful_set["metadata"]["name"]])["spec"]["containers"]
            self.assertEqual(flags_of(container), {**flags_of(base), "device": "cuda"})


class Schemas(unittest.TestCase):
    def test_every_overlay_is_known(self):
        folders = {os.path.dirname(p) for p in glob.glob(f"{manifests.ROOT}/*/kustomization.yaml")}
        self.assertEqual({os.path.basename(f) for f in folders}, {"base", *OVERLAYS})

    def test_objects_fit_the_schemas(self):
        if not shutil.which("kubectl"):
            self.skipTest("there is no kubectl: nothing was rendered")
        for folder in OVERLAYS:
            with self.subTest(overlay=folder):
                manifests.validate(self, render(folder))


if __name__ == "__main__":
    sys.exit(manifests.main())
