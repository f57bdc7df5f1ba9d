"""The block graph, put together from every place that tells a part of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from autopsy.bundle.heap import records as heap_records
from autopsy.dataclass import dataclass
from autopsy.facts import monitor
from autopsy.facts.cite import Cite, Fact, Known, Unknown
from autopsy.facts.command_line import CommandLine, Options, string
from autopsy.facts.model.facts import MonitorFact, Node
from autopsy.facts.model.left_out import LeftOutFact
from autopsy.facts.untrusted import mapping, number, sequence, text

MOST_NODES = 4096
MORE = "there are more nodes in the block graph than are told"
NOTHING: Mapping[str, str] = {}
LOCAL = frozenset({"file", "host_device", "host_cdrom"})
# What -blockdev calls a node below another: the path that a request takes first is first, the backing file last.
CHILDREN = ("file", "image", "data-file", "raw", "test", "log", "target", "backing")


@dataclass(slots=True)
class BlockGraph:
    """Nodes by name. What a later source adds fills what an earlier one left empty.

    `opened` tells the open file of an image that is known by another name, by that name.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    opened: Mapping[str, str] = field(default_factory=dict)
    left_out: list[LeftOutFact] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Add what is new in a node."""
        if not node.name:
            return
        if len(self.nodes) >= MOST_NODES and node.name not in self.nodes:
            if not self.left_out:
                self.left_out.append(LeftOutFact(MORE, f"{MOST_NODES} are", requests=False, cite=node.cite))
            return
        known = self.nodes.setdefault(node.name, node)
        self.nodes[node.name] = replace(
            known,
            driver=known.driver or node.driver,
            filename=known.filename or node.filename,
            children=known.children or node.children,
            aio=known.aio or node.aio,
            throttle_group=known.throttle_group or node.throttle_group,
            server=known.server or node.server,
        )

    def hang_below(self, name: str, files: frozenset[str]) -> None:
        """Add the nodes of files to a node's children, but for those that are below it already."""
        node = self.nodes.get(name)
        if node is None:
            return
        known = {below.filename for below in self.below(name)}
        more = (end.name for end in self.nodes.values() if end.filename in files - known and not end.children)
        self.nodes[name] = replace(node, children=(*node.children, *more))

    def below(self, top: str) -> tuple[Node, ...]:
        """Return a node and everything under it, from the top, each once."""
        nodes: dict[str, Node] = {}
        names = [top]
        while names and len(nodes) < MOST_NODES:
            node = self.nodes.get(names.pop(0))
            if node is not None and node.name not in nodes:
                nodes[node.name] = replace(node, opened=self.opened.get(node.filename, ""))
                names += node.children
        return tuple(nodes.values())


def gather_nodes(
    talk: MonitorFact, heap: Fact[heap_records.HeapSnapshot], line: CommandLine, opened: Mapping[str, str] = NOTHING
) -> BlockGraph:
    """Return the graph as QMP, the heap and the command line tell it."""
    graph = BlockGraph(opened=opened)
    drivers = _drivers(talk)
    for node in _from_graph_question(talk, drivers):
        graph.add(node)
    for node in _from_nodes_question(talk):
        graph.add(node)
    if isinstance(heap, Known):
        for stored in heap.value.nodes:
            children = tuple(edge.node_name for edge in stored.children)
            cite = Cite("evidence/gdb.threads/heap.json", 0, f"node {stored.node_name}")
            graph.add(
                Node(
                    name=stored.node_name, driver=stored.driver, filename=stored.filename, children=children, cite=cite
                )
            )
    for options in line.blockdevs:
        for node in from_options(options, line.cite):
            graph.add(node)
    for node in _from_statistics(talk):
        graph.add(node)
    for node in _from_file_names(graph):
        graph.add(node)
    for name, files in _files_of_formats(talk):
        graph.hang_below(name, files)
    return graph


def drivers(talk: MonitorFact) -> Fact[frozenset[str]]:
    """Return the drivers of all block nodes that there are: only one question tells every node."""
    listed = monitor.answer(talk, "query-named-block-nodes")
    if isinstance(listed, Unknown):
        return listed
    return Known(frozenset(text(mapping(node).get("drv")) for node in sequence(listed.value)), listed.cite)


def _drivers(talk: MonitorFact) -> dict[str, str]:
    listed = monitor.answer(talk, "query-named-block-nodes")
    nodes = sequence(listed.value) if isinstance(listed, Known) else []
    return {text(mapping(node).get("node-name")): text(mapping(node).get("drv")) for node in nodes}


def _from_graph_question(talk: MonitorFact, drivers: Mapping[str, str]) -> Iterator[Node]:
    graph = monitor.answer(talk, "x-debug-query-block-graph")
    if not isinstance(graph, Known):
        return
    whole = mapping(graph.value)
    names = {number(mapping(node).get("id")): text(mapping(node).get("name")) for node in sequence(whole.get("nodes"))}
    drawn = {
        number(mapping(node).get("id"))
        for node in sequence(whole.get("nodes"))
        if mapping(node).get("type") == "block-driver"
    }
    below: dict[int, list[dict[str, Any]]] = {}
    for edge in map(mapping, sequence(whole.get("edges"))):
        below.setdefault(number(edge.get("parent")), []).append(edge)
    for identity in sorted(drawn):
        edges = below.get(identity, [])
        # "file" before "backing": the path that a request takes first.
        edges.sort(key=lambda edge: text(edge.get("name")) == "backing")
        children = tuple(names.get(number(edge.get("child")), "") for edge in edges)
        name = names[identity]
        yield Node(
            name=name,
            driver=drivers.get(name, ""),
            children=children,
            cite=Cite(graph.cite.file, graph.cite.line, name),
        )


def _from_nodes_question(talk: MonitorFact) -> Iterator[Node]:
    for question in ("query-named-block-nodes", "query-block"):
        listed = monitor.answer(talk, question)
        if not isinstance(listed, Known):
            continue
        for entry in sequence(listed.value):
            node = mapping(entry) if question == "query-named-block-nodes" else mapping(mapping(entry).get("inserted"))
            name = text(node.get("node-name"))
            file = text(mapping(node.get("image")).get("filename")) or text(node.get("file"))
            cite = Cite(listed.cite.file, listed.cite.line, f"node-name {name}")
            driver = text(node.get("drv"))
            yield Node(
                name=name,
                driver=driver,
                filename=file,
                children=_children(node),
                server=_server_of_name(file, driver),
                cite=cite,
            )


def _files_of_formats(talk: MonitorFact) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the nodes whose format keeps data in further files, with these files: qcow2's data file, vmdk's extents.

    Before QEMU 10.1 only the names of the files tell which nodes these are.
    """
    listed = monitor.answer(talk, "query-named-block-nodes")
    for entry in map(mapping, sequence(listed.value) if isinstance(listed, Known) else ()):
        data = mapping(mapping(mapping(entry.get("image")).get("format-specific")).get("data"))
        extents = (text(mapping(extent).get("filename")) for extent in sequence(data.get("extents")))
        if files := frozenset((text(data.get("data-file")), *extents)) - {""}:
            yield text(entry.get("node-name")), files


def _children(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the children that a node names. Since QEMU 10.1 it does ("block/qapi: include child references …")."""
    # "file" before "backing": the path that a request takes first.
    edges = sorted(map(mapping, sequence(node.get("children"))), key=lambda edge: text(edge.get("child")) == "backing")
    return tuple(name for edge in edges if (name := text(edge.get("node-name"))))


def _from_statistics(talk: MonitorFact) -> Iterator[Node]:
    """Read the chains that query-blockstats nests as `parent` and `backing`, and the driver where it tells it."""
    counters = monitor.answer(talk, "query-blockstats")
    if not isinstance(counters, Known):
        return
    waiting = [mapping(entry) for entry in sequence(counters.value)]
    for _ in range(MOST_NODES):
        if not waiting:
            return
        node = waiting.pop(0)
        below = [mapping(node[key]) for key in ("parent", "backing") if node.get(key)]
        waiting += below
        if name := text(node.get("node-name")):
            yield Node(
                name=name,
                driver=text(mapping(node.get("driver-specific")).get("driver")),
                children=tuple(dict.fromkeys(child for edge in below if (child := text(edge.get("node-name"))))),
                cite=Cite(counters.cite.file, counters.cite.line, name),
            )


def _from_file_names(graph: BlockGraph) -> Iterator[Node]:
    """Read `json:{…}` file names, the only place where a throttle filter tells its group over QMP."""
    for node in tuple(graph.nodes.values()):
        if not node.filename.startswith("json:"):
            continue
        try:
            options = json.loads(node.filename[5:])
        except (ValueError, RecursionError):
            continue
        first = next(from_options({**mapping(options), "node-name": node.name}, node.cite), None)
        if first is not None:
            yield first if not node.children else replace(first, children=node.children)


def from_options(options: Options, cite: Cite, depth: int = 0) -> Iterator[Node]:
    """Yield the node that a -blockdev describes and the nameless ones inside it."""
    name = string(options, "node-name")
    driver = string(options, "driver")
    children: list[str] = []
    inner: list[Options] = []
    answerer = server(options)
    for key in () if answerer else CHILDREN:  # a server's `image` or `target` is a name of its own
        child = options.get(key)
        if isinstance(child, Mapping) and child and depth < 16:
            inner_name = string(child, "node-name") or f"{name}.{key}"
            children.append(inner_name)
            inner.append({**child, "node-name": inner_name})
        elif isinstance(child, str) and child and driver not in LOCAL:
            children.append(child)
    yield Node(
        name=name,
        driver=driver,
        filename=string(options, "filename"),
        children=tuple(children),
        aio=string(options, "aio") or ("threads" if driver in LOCAL else ""),
        throttle_group=string(options, "throttle-group"),
        server=answerer,
        cite=Cite(cite.file, cite.line, f"node-name={name}"),
    )
    for child_options in inner:
        yield from from_options(child_options, cite, depth + 1)


def server(options: Options) -> str:
    """Return who answers a network driver, as an operator would write it."""
    where: Any = options.get("server")
    if isinstance(where, list):
        where = where[0] if where else {}
    if isinstance(where, Mapping):
        path = string(where, "path")
        return path or f"{string(where, 'host')}:{string(where, 'port')}".strip(":")
    path, host, port = string(options, "path"), string(options, "host"), string(options, "port")
    driver = string(options, "driver")
    if driver == "nbd":
        return path or f"{host}:{port}".strip(":")
    if driver == "rbd":
        return f"{string(options, 'pool')}/{string(options, 'image')}"
    if driver == "iscsi":
        return string(options, "portal")
    return string(options, "url") if driver in {"http", "https", "ftp", "ftps"} else host


def _server_of_name(file: str, driver: str) -> str:
    if file.startswith("json:"):
        return server(_json_options(file))
    if driver == "nbd" or file.startswith(("nbd:", "nbd+unix:")):
        return file
    return file if driver in {"rbd", "iscsi", "nfs", "ssh", "gluster", "http", "https"} else ""


def _json_options(file: str) -> dict[str, object]:
    """Return the options in a `json:{…}` file name, none where it is cut short."""
    try:
        return mapping(json.loads(file.removeprefix("json:")))
    except (ValueError, RecursionError):
        return {}


def drive_nodes(options: Options, top: str, cite: Cite) -> tuple[Node, ...]:
    """Return the two nodes of a -drive: its format and, below, its protocol."""
    file = string(options, "file") or string(options, "file", "filename")
    if file.startswith("json:"):
        return tuple(from_options({**_json_options(file), "node-name": top}, cite))
    inner: Any = options.get("file")
    scheme = file.split(":", 1)[0].split("+", 1)[0] if ":" in file.split("/", 1)[0] else ""
    driver = string(inner, "driver") if isinstance(inner, Mapping) else ""
    driver = driver or scheme or ("host_device" if file.startswith("/dev/") else "file" if file else "")
    peer = server(inner) if isinstance(inner, Mapping) and driver == "nbd" else _server_of_name(file, driver)
    aio = string(options, "aio") or ("threads" if driver in LOCAL else "")
    below = f"{top}.file"
    group = string(options, "throttling", "group")
    return (
        Node(
            name=top,
            driver=string(options, "format") or string(options, "driver"),
            filename=file,
            children=(below,),
            cite=cite,
        ),
        Node(name=below, driver=driver, filename=file, aio=aio, server=peer, throttle_group=group, cite=cite),
    )


def read_command_line_again(graph: BlockGraph, line: CommandLine, backend: str, top: str) -> None:
    """Add what a -drive tells of the nodes below `top`, matched by their place in the chain."""
    drive = next((drive for drive in line.drives if backend and string(drive, "id") == backend), None)
    if drive is None or not top:
        return
    format_node, *rest = drive_nodes(drive, top, Cite(line.cite.file, line.cite.line, f"-drive id={backend}"))
    chain = graph.below(top)
    if len(chain) <= 1:
        graph.add(format_node)
        for node in rest:
            graph.add(node)
        return
    graph.add(replace(format_node, children=()))
    if rest:
        graph.add(replace(rest[-1], name=chain[-1].name, children=()))
