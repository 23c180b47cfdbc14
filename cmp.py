import pstats


def load(n):
    d = {}
    for (f, l, name), (cc, nc, tt, ct, _) in pstats.Stats(f"/tmp/rev2/{n}.pstat").stats.items():
        k = (
            f.replace("/work/" + n, "").split("site-packages")[-1].replace("passes/weightless", "workload/weightless"),
            name,
        )
        a = d.setdefault(k, [0, 0, 0])
        a[0] += nc
        a[1] += tt
        a[2] += ct
    return d


a, b = load("main"), load("wt-rev2")
rows = []
for k in set(a) | set(b):
    x, y = a.get(k, [0, 0, 0]), b.get(k, [0, 0, 0])
    rows.append((y[0] - x[0], y[1] - x[1], k, x, y))
rows.sort(key=lambda r: -r[0])
for r in rows[:40]:
    print(r[0], "%.3f" % r[1], r[2], "%d %.3f %.3f -> %d %.3f %.3f" % (*r[3], *r[4]))
