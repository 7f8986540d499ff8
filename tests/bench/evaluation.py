"""Evaluation of frozen features beside scikit-learn, lightly and faiss: neighbours, a linear probe, spherical k-means."""

import torch
import torch.nn.functional as F

from tests.bench.compare import Case, Peer, table
from tests.bench.harness import THREADS
from wssl.balance import spherical_kmeans
from wssl.evaluation.knn import knn_predict
from wssl.evaluation.linear import linear_probe

TILES = "the peer keeps the best of each tile of products while the tile lies in the cache; ours writes the similarities of 512 rows and reads them again, in operators that run on a GPU too"

PASSES = "the peer assigns and adds up some rows while their similarities lie in the cache; ours takes products, maxima and sums in passes over many, in operators that run on a GPU too"


def classes(n, m, k=10, seed=0, spread=3.0):
    """Rows around `k` directions and their labels: a problem that neighbours and a hyperplane nearly solve."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, m, generator=torch.Generator().manual_seed(99))
    y = torch.randint(k, (n,), generator=random)
    return centres[y] + spread * torch.randn(n, m, generator=random), y


def neighbours(n, t, m, k=200, temperature=0.1):
    (bank, y), (rows, _) = classes(n, m), classes(t, m, seed=1, spread=9.0)

    def ours():
        return (knn_predict(bank, y, rows, k, temperature).double(),)

    def of_lightly():
        from lightly.utils.benchmarking.knn import knn_predict as predict

        def run():  # in parts, as its own benchmark evaluates: one product would hold n x t numbers, and n x k x classes
            columns, unit = F.normalize(bank).T.contiguous(), F.normalize(rows)
            parts = [predict(part, columns, y, 10, k, temperature)[:, 0] for part in unit.split(512)]
            return (torch.cat(parts).double(),)

        return run

    def of_sklearn():
        from sklearn.neighbors import KNeighborsClassifier

        def weights(distance):  # of unit rows: squared distance = 2 - 2 cosine
            return torch.from_numpy((1 - distance**2 / 2) / temperature).exp().numpy()

        def run():
            model = KNeighborsClassifier(k, weights=weights, algorithm="brute", n_jobs=THREADS)
            model.fit(F.normalize(bank).numpy(), y.numpy())
            return (torch.from_numpy(model.predict(F.normalize(rows).numpy())).double(),)

        return run

    def of_faiss():
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())

        def run():
            index = faiss.IndexFlatIP(m)
            index.add(F.normalize(bank).numpy())
            near, which = (torch.from_numpy(x) for x in index.search(F.normalize(rows).numpy(), k))
            votes = torch.zeros(t, 10).scatter_add_(1, y[which], (near / temperature).exp())
            return (votes.argmax(1).double(),)

        return run

    peers = [
        Peer("lightly knn_predict", "lightly", of_lightly),
        Peer("scikit-learn KNeighborsClassifier", "sklearn", of_sklearn),
        Peer("faiss IndexFlatIP, votes by torch", "faiss", of_faiss, reason=TILES),
    ]
    size = f"{n:,} x {t:,} x {m}"
    yield Case(f"kNN, k = {k}", size, ours, peers, 2 * n * t * m, 4 * (n + t) * m, tolerance=2e-2)


def probe(n, t, m, epochs=500):
    (h, y), (test, test_y) = classes(n, m, spread=6.0), classes(t, m, seed=1, spread=6.0)

    def ours():
        return (linear_probe(h, y, test, test_y, epochs=epochs).top1,)

    def of_sklearn():
        from sklearn.linear_model import LogisticRegression

        def run():
            model = LogisticRegression(C=1 / (5e-6 * n), max_iter=1000)
            return (model.fit(h.numpy(), y.numpy()).score(test.numpy(), test_y.numpy()),)

        return run

    def of_w_mse():
        def run():  # the loop of the protocol's authors: a layer, Adam, a learning rate that falls exponentially
            layer = torch.nn.Linear(m, 10)
            optimizer = torch.optim.Adam(layer.parameters(), 1e-2, weight_decay=5e-6)
            falls = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-6 / 1e-2) ** (1 / epochs))
            batch = min(1000, max(1, n // 50))
            for _ in range(epochs):
                for rows in torch.randperm(n).split(batch):
                    optimizer.zero_grad()
                    F.cross_entropy(layer(h[rows]), y[rows]).backward()
                    optimizer.step()
                falls.step()
            with torch.no_grad():
                return ((layer(test).argmax(1) == test_y).float().mean(),)

        return run

    own = "another optimum: ours is the papers' protocol, Adam for a given number of epochs, the peer goes to the minimum of a penalised loss"
    peers = [
        Peer(
            "scikit-learn LogisticRegression",
            "sklearn",
            of_sklearn,
            definition=own,
            reason=f"the protocol prescribes {epochs} passes over the data; a quasi-Newton method needs fewer where the data fit in memory",
        ),
        Peer("the protocol's loop by torch.nn and Adam, retyped", "torch", of_w_mse),
    ]
    size = f"{n:,} x {m}, {epochs} epochs"
    yield Case("linear probe", size, ours, peers, 4 * n * m * 10 * epochs, 4 * n * m * epochs, tolerance=1e-2)


def clusters(n, m, k, iterations=20):
    x = F.normalize(classes(n, m, k=k)[0])  # so spread out that no run settles before its last round
    start = x[torch.randperm(n, generator=torch.Generator().manual_seed(3))[:k]]

    def closeness(found):
        centroids = F.normalize(torch.as_tensor(found[0]))
        return (torch.cat([(part @ centroids.T).amax(1) for part in x.split(4096)]).mean(),)

    def ours():
        return (spherical_kmeans(x, k, iterations, torch.Generator().manual_seed(3)),)

    def of_sklearn():
        from sklearn.cluster import KMeans

        def run():
            model = KMeans(k, init=start.numpy(), n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
            return (model.fit(x.numpy()).cluster_centers_,)

        return run

    def of_faiss():
        import faiss

        def run():
            model = faiss.Kmeans(m, k, niter=iterations, spherical=True, max_points_per_centroid=10**9)
            model.train(x.numpy(), init_centroids=start.numpy())
            return (model.centroids,)

        return run

    peers = [
        Peer(
            "scikit-learn KMeans",
            "sklearn",
            of_sklearn,
            definition="centroids are means of the rows, not brought to unit length",
            reason=PASSES,
        ),
        Peer("faiss Kmeans(spherical)", "faiss", of_faiss, reason=PASSES),
    ]
    yield Case(
        f"spherical k-means, k = {k}",
        f"{n:,} x {m}, {iterations} rounds",
        ours,
        peers,
        2 * n * m * k * iterations,
        4 * n * m * iterations,
        tolerance=1e-2,
        read=closeness,
    )


SIZES = {
    neighbours: [(10_000, 2_000, 512), (50_000, 10_000, 512)],
    probe: [(5_000, 2_000, 512), (20_000, 2_000, 128, 30)],
    clusters: [(10_000, 128, 100), (20_000, 128, 1000)],
}


def measure(ceiling, repeats=3, budget=2.0):
    """Rows: one a task, a size and a peer."""
    cases = (case for family, sizes in SIZES.items() for size in sizes for case in family(*size))
    yield from table(cases, ceiling, min(repeats, 5), budget)
