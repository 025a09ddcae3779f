# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is symmetry?
#
# In a textbook an atom has a point group. In an image it has neighbours, each seen at a place that is a few picometres
# off. No three bonds are ever equal there, so a handful of neighbours never *proves* a symmetry. What they give is a
# probability for each symmetry, and what was thought of the material beforehand is part of it. This lesson works that
# out by hand, and then walks into the traps: a scan that is not square, a shell that is too poor, an average that is
# too rich.
#
# You need no statistics beyond the normal distribution. Everything here runs in about a minute.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial import cKDTree
from scipy.special import logsumexp

import atomzoo

plt.rcParams.update(
    {"figure.figsize": (6.4, 3.6), "axes.spines.top": False, "axes.spines.right": False}
)
rng = np.random.default_rng(1)

# %% [markdown]
# ## 1. Three equal bonds, or one stretched?
#
# A carbon atom in graphene has three neighbours, 142 pm away. Here is one, seen by a microscope that places every atom
# to 3 pm. Are its bonds equal?


# %%
def polygon(n, radius, start):
    """Vectors (pm) to the corners of a regular polygon, the first at an angle of `start` degrees."""
    angle = np.radians(start + 360 * np.arange(n) / n)
    return radius * np.stack([np.cos(angle), np.sin(angle)], 1)


bonds = polygon(3, 142.0, 90)
motif = bonds.ravel()
# Bond 0 longer by 1 pm, the other two as they are.
stretch = np.array([0, 1, 0, 0, 0, 0])
# Neighbour vectors are differences: the error of the atom in the middle is in all three of them.
shared = np.kron(np.ones((3, 3)), np.eye(2))


def covariance(noise):
    return noise**2 * (np.eye(6) + shared)


noise = 3.0
seen = rng.multivariate_normal(motif + 15 * stretch, covariance(noise))
print("bond lengths (pm):", np.linalg.norm(seen.reshape(3, 2), axis=1).round(1))

# %% [markdown]
# Three hypotheses. *D3*: the site has a threefold axis and three mirror lines, all bonds are equal. *D1*: one mirror
# line; one bond may differ, the other two are mirror images. *C1*: no symmetry at all.
#
# An operation of a group turns the vectors *and* renumbers them. What a group $G$ leaves as it is, is a subspace of the
# six numbers; the mean of all its operations projects onto it, $P_G$. Before seeing the data we believe that the true
# vectors are the motif $m$, but for a deviation of about $\tau$ in each direction that the group allows. Add the error
# $\Sigma$ of measurement, and the probability that a hypothesis gave to the data, its *evidence*, is a normal density:
#
# $$ p(d \mid G) = \mathcal N(d;\; m,\; \tau^2 P_G + \Sigma). $$


# %%
def turn(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


def projector(group, vectors):
    """Mean of what the operations do: turn every vector, and put it into the slot where it lands."""
    total = 0
    for matrix in group:
        # Within 1 pm it is the same place.
        apart = np.linalg.norm(vectors[:, None] - vectors @ matrix.T, axis=2)
        total = total + np.kron(apart < 1.0, matrix)
    return total / len(group)


def log_evidence(data, mean, cov):
    """ln N(data; mean, cov), for many data at once."""
    rest = data - mean
    squares = np.sum(rest @ np.linalg.inv(cov) * rest, -1)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * cov)[1])


mirror = np.diag([-1.0, 1.0])
C3 = [turn(0), turn(120), turn(240)]
D3 = C3 + [t @ mirror for t in C3]
# Which bond is the odd one out is not known: each of three mirror lines has a third of the probability.
HYPOTHESES = {"D3": [D3], "D1": [[turn(0), t @ mirror @ t.T] for t in C3], "C1": [[turn(0)]]}
projectors = {n: [projector(g, bonds) for g in groups] for n, groups in HYPOTHESES.items()}


def log_evidences(data, noise, tau):
    found = [
        [log_evidence(data, motif, tau**2 * p + covariance(noise)) for p in several]
        for several in projectors.values()
    ]
    return np.stack([logsumexp(logs, axis=0) - np.log(len(logs)) for logs in found])


def probabilities(data, noise, tau):
    """Of D3, D1 and C1, each as likely as the others beforehand."""
    logs = log_evidences(data, noise, tau)
    return np.exp(logs - logsumexp(logs, axis=0))


for name, several in projectors.items():
    print(f"{name}: {round(np.trace(several[0]))} of 6 numbers are free")
found = probabilities(seen, noise, tau=10.0)

fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), width_ratios=[1, 1.1])
for vector, ideal in zip(seen.reshape(3, 2), bonds, strict=True):
    left.plot([0, vector[0]], [0, vector[1]], "k-", lw=1)
    left.add_patch(plt.Circle(vector, 2 * noise, color="C0", alpha=0.3))
    left.plot(*vector, "C0o", ms=4)
    left.plot(*ideal, "k+", ms=10)
left.plot(0, 0, "ko")
left.set(
    xlabel="x (pm)", ylabel="y (pm)", title="Seen, with 2σ; + three equal bonds", aspect="equal"
)
right.bar(list(projectors), found, color=["C0", "C1", "C2"])
right.set(ylabel="probability", ylim=(0, 1), title="What this says, τ = 10 pm")
fig.tight_layout()

# %% [markdown]
# ### Occam's razor
#
# C1 can do all that D3 can, and fits any data better. Still it loses when the bonds are equal, because it bet on many
# other sites besides. Nobody added a penalty: it is the logarithm of the determinant in the normal density, and each
# freedom costs about $\ln(\tau/\sigma)$. Bonds of growing difference, seen with growing noise:

# %%
stretches = np.linspace(0, 25, 51)
noises = np.linspace(0.2, 6, 30)
many = rng.standard_normal((300, 6))
chance = np.empty((3, len(stretches), len(noises)))
for j, sigma in enumerate(noises):
    errors = many @ np.linalg.cholesky(covariance(sigma)).T
    sites = motif + stretches[:, None, None] * stretch + errors
    chance[:, :, j] = probabilities(sites, sigma, tau=10.0).mean(-1)

fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
for ax, name, share in zip(axes, ("D3", "D1"), chance, strict=False):
    shown = ax.pcolormesh(noises, stretches, share, vmin=0, vmax=1)
    lines = ax.contour(noises, stretches, share, [0.5, 0.9], colors="w", linewidths=1)
    ax.clabel(lines, fontsize=8)
    ax.plot(noises, 4 * noises, "w:", lw=1.5)
    ax.set(xlabel="noise σ (pm)", title=f"mean probability of {name}", ylim=(0, 25))
axes[0].set_ylabel("one bond longer by (pm)")
fig.colorbar(shown, ax=axes)

# %% [markdown]
# Dotted: a stretch of 4σ. Well below it "D3" is what the data can carry, even where the bonds *do* differ. That is no
# mistake, and no proof either: look how soon, along the bottom of the left-hand picture, D3 falls below 0.9, though all
# bonds are equal there. The noise leaves it open.
#
# ### And the prior?
#
# $\tau$ is how far we thought a site may stray from the motif. The same atom, the same noise, another $\tau$:

# %%
taus = np.geomspace(0.3, 300, 61)
site = motif + 15 * stretch
curves = np.stack([probabilities(site, noise, tau) for tau in taus], 1)
fig, ax = plt.subplots()
for name, curve in zip(projectors, curves, strict=True):
    ax.semilogx(taus, curve, label=name)
ax.axvspan(5, 20, color="0.9", zorder=0)
ax.set(xlabel="prior width τ (pm)", ylabel="probability", ylim=(0, 1))
ax.set_title("A bond longer by 15 pm, seen with σ = 3 pm")
ax.legend(frameon=False)

# %% [markdown]
# With a tiny $\tau$ all three say the same, "it is the motif", and stay at a third; a little further up C1 leads, which
# has the most directions to give way in. With a huge $\tau$ D1 and C1 bet on bonds as long as the sheet, lose these
# bets, and in the end D3 wins *whatever the data*: a vague prior is not a modest one. In between (grey: strains that
# crystals have) the data speak. The probability of a symmetry without its $\tau$ is half an answer.
#
# **Question.** A bond is longer by two standard deviations, which many would call significant. Who wins here, and why?
#
# ## 2. A sheet of atoms, and the scan
#
# `site_symmetry` does this for every atom, and does not know beforehand what we put in by hand: the orientation of the
# site (it is integrated out), the noise, and how common each class is. It knows of a trap as well. A scan whose lines
# slip makes parallelograms of squares: *that breaks every symmetry, everywhere, and is not the crystal's doing*. First,
# by hand, a perfect triangle seen through a shear:

# %%
sheared = np.linspace(0, 0.1, 60)
fig, ax = plt.subplots()
for sigma in (1.0, 2.0, 4.0):
    shear = np.array([bonds @ np.array([[1, g], [0, 1]]).T for g in sheared]).reshape(-1, 6)
    ax.plot(100 * sheared, probabilities(shear, sigma, tau=10.0)[0], label=f"σ = {sigma:g} pm")
ax.set(xlabel="shear of the scan (%)", ylabel="probability of D3", ylim=(0, 1))
ax.set_title("Three equal bonds through a slipping scan")
ax.legend(frameon=False)

# %% [markdown]
# The better the microscope, the surer the wrong answer. What tells a scan from a site is that all sites share it. Two
# grains of graphene that meet, through a shear of 5 %: once the scan is left free; once it is held to be perfect; and
# once, besides, the stated errors of the positions are taken for all the noise there is.

# %%
still = {"gives": "atoms", "drift": 0.0, "disorder": 0.001}
sheet = atomzoo.simulate(
    "graphene", seed=2, field=2.2, tilt=20.0, shear=0.05, precision=0.0015, **still
)
perfect = {
    "scale": "Normal(1, 1e-4)",
    "stretch": "Normal(1, 1e-4)",
    "shear": "Normal(0, 1e-4)",
    "drift": "Normal(0, 1e-4).expand([2, 2]).to_event(2)",
    "strain": "Normal(0, 1e-4).expand([2]).to_event(1)",
}
priors = {
    "scan free": "vague",
    "scan perfect": perfect,
    "scan perfect, errors too": perfect | {"noise": "HalfNormal(1e-4)", "inflation": 1.0},
}
runs = {
    name: atomzoo.fit("site_symmetry", sheet, prior=prior, predictive=0)
    for name, prior in priors.items()
}

fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True)
print(f"{'':26} P(C3/D3) in the grains   noise (pm)   ln evidence")
for ax, (name, run) in zip(axes, runs.items(), strict=True):
    classes = run["classes"].to_dataset()
    regular = classes["group"].sel(group_class="C3/D3").values
    # The simulation knows which atoms are in hexagons only.
    bulk = run["constant_data"]["true_site"].values == 0
    ax.plot(*sheet["position"].values.T, ".", color="0.8", ms=3, zorder=0)
    shown = ax.scatter(*classes["position"].values.T, c=regular, vmin=0, vmax=1, s=22)
    ax.plot(*classes["position"].values[~bulk].T, "r.", ms=3)
    ax.set(xlabel="x (nm)", aspect="equal")
    ax.set_title(name, fontsize=10)
    noise_found = 1000 * float(run["posterior"]["noise"].mean())
    evidence = run.attrs["log_evidence"]
    print(f"{name:26} {regular[bulk].mean():23.2f} {noise_found:12.1f} {evidence:13.0f}")
axes[0].set_ylabel("y (nm)")
axes[0].invert_yaxis()
fig.colorbar(shown, ax=axes, label="probability of C3/D3")

told = runs["scan free"]["derived"].to_dataset().sel(component="shear")
for origin in told["origin"].values:
    mean, sd = (float(told[name].sel(origin=origin)) for name in ("distortion", "distortion_sd"))
    print(f"shear, {origin:8} {mean:+.3f} ± {sd:.3f}")

# %% [markdown]
# On the left the grains are regular; the pentagons and heptagons of the boundary (red dots) and some of their
# neighbours are not. In the middle the shear had nowhere to go but into the noise, which is more than it was, and sites
# that do differ drown in it. On the right it could not go there either, and hardly a threefold site is left in a sheet
# of perfect hexagons. The evidence knows: it prefers the free scan by more than a hundred. Grey atoms are at the rim,
# where the shell is cut; they are left out.
#
# The *observed* shear is known well. How it divides into the scan's and the crystal's is not, as the larger errors say:
# a crystal under uniform strain looks the same. Only what you know of instrument and specimen, the prior, divides them.
#
# **Question.** Which second picture of the same sheet would divide them?
#
# ## 3. What one shell cannot tell
#
# The maps above are of *C3/D3*, one class. A threefold axis without mirror lines leaves two numbers free: the length of
# the bonds, and a twist of all three. But a twist of all three bonds is a rotation of the triangle, and how the
# triangle is rotated we did not know anyway. With the rotation counted in, C3 and D3 can do the same. A second shell
# has something to be twisted against:

# %%
second = polygon(6, 246.0, 60)
both = np.concatenate([bonds, second])
D1 = [turn(0), mirror]
GROUPS = {"C1": [turn(0)], "D1": D1, "C3": C3, "D3": D3}

print("free numbers, then with the rotation of all:   one shell   two shells")
for name, group in GROUPS.items():
    row = []
    for vectors in (bonds, both):
        allowed = projector(group, vectors)
        rotated = (vectors @ turn(90).T).ravel()
        with_rotation = np.linalg.matrix_rank(np.column_stack([allowed, rotated]))
        row.append(f"{np.linalg.matrix_rank(allowed):2d} -> {with_rotation:2d}")
    print(f"{name:46} {row[0]:11} {row[1]}")


# %% [markdown]
# The evidence says the same. Now the orientation is unknown, and the mean over all of them is taken:

# %%
degrees = np.arange(-60, 60, 0.25)


def log_evidence_unoriented(vectors, nominal, group, noise=3.0, tau=10.0):
    """The same, and the mean over all orientations."""
    n = len(nominal)
    errors = noise**2 * (np.eye(2 * n) + np.kron(np.ones((n, n)), np.eye(2)))
    turned = np.array([(vectors @ turn(d).T).ravel() for d in degrees])
    logs = log_evidence(turned, nominal.ravel(), tau**2 * projector(group, nominal) + errors)
    return logsumexp(logs) - np.log(len(logs))


twists = np.linspace(0, 8, 33)
factors = []
for twist in twists:
    site = np.concatenate([bonds, second @ turn(twist).T])
    for data, nominal in ((site[:3] @ turn(twist).T, bonds), (site, both)):
        one, other = (log_evidence_unoriented(data, nominal, g) for g in (C3, D3))
        factors.append(one - other)
one_shell, two_shells = np.reshape(factors, (-1, 2)).T
print(f"one shell: log Bayes factor at most {np.abs(one_shell).max():.4f}")

fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
shown = np.concatenate([bonds, second @ turn(8).T])
left.plot(*second.T, "o", mfc="none", mec="0.6")
left.plot(*shown.T, "C0o")
left.plot(0, 0, "ko")
for angle in (90, 210, 330):
    left.plot(*np.array([-1, 1])[:, None].T * 260 * polygon(1, 1, angle).T, "k:", lw=0.8)
left.set(xlabel="x (pm)", ylabel="y (pm)", aspect="equal", title="Second shell twisted by 8°")
right.plot(twists, two_shells, label="two shells")
right.plot(twists, one_shell, label="one shell")
right.axhline(3, color="k", ls=":", lw=1)
right.set(xlabel="twist (degrees)", ylabel="ln evidence, C3 over D3", title="σ = 3 pm, τ = 10 pm")
right.legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# Dotted on the left are the mirror lines that the twist has broken, on the right odds of 20 to 1. A program that splits
# probability between C3 and D3 on one shell splits it between two names of one thing. (What is left of a difference
# there is that a twist along the tangent makes bonds a little longer as well.) It is the
# same with C4 and D4 on one shell of four, and with C6 and D6 on one of six.
#
# **Question.** Two of the three neighbours are of one species and the third is of another, and the species are known.
# Which groups are left to choose between?
#
# ## 4. Cubic or tetragonal?
#
# Now a whole image, and one number: $c - a$. Its error is that of a mean over cells and can be small. *Cubic* says that
# the difference is nothing worth the name, $|c-a| \lesssim \rho$, and *tetragonal* that it is some picometres, up or
# down, $c - a \sim \mathcal N(0, w^2)$. The Bayes factor takes one line:


# %%
def log_bayes_factor(difference, error, width, rope=0.2):
    """Tetragonal over cubic (natural logarithm); all in pm."""
    tetragonal, cubic = width**2 + error**2, rope**2 + error**2
    return 0.5 * (np.log(cubic / tetragonal) + difference**2 * (1 / cubic - 1 / tetragonal))


z = np.linspace(0, 8, 100)
error = 1.0
fig, ax = plt.subplots()
for width in (2.0, 10.0, 50.0):
    ax.plot(z, log_bayes_factor(z * error, error, width) / np.log(10), label=f"w = {width:g} pm")
ax.axhline(1, color="k", ls=":", lw=1)
ax.axhline(-1, color="k", ls=":", lw=1)
ax.set(xlabel="(c − a) / error", ylabel="log10 of the Bayes factor", ylim=(-2.5, 6))
ax.set_title("Tetragonal over cubic, error 1 pm")
ax.legend(frameon=False)

# %% [markdown]
# Four standard errors are good for odds of 10, unless somebody was prepared for differences of hundreds of errors. And
# no difference at all is good for odds the *other* way, where the error is small against $w$: a test against a null
# hypothesis can never say "it is cubic", this can.
#
# Evidence says whether there is a difference. Whether it *matters* is another question, and has another answer: how
# much of the posterior lies within the region of practical equivalence, $|c-a| < \rho$.

# %%
print("c - a (pm)      log Bayes factor,   |c - a| < 0.4 pm")
print("                any difference      with probability")
for difference, error in ((0.25, 0.05), (4.4, 1.0), (1.0, 2.0)):
    factor = log_bayes_factor(difference, error, 10.0, rope=0.0)
    kept = 100 / (100 + error**2)
    draws = rng.normal(kept * difference, np.sqrt(kept) * error, 100_000)
    print(f"{difference:4} ± {error:4} {factor:16.1f} {np.mean(np.abs(draws) < 0.4):18.2f}")

# %% [markdown]
# The first crystal is tetragonal, certainly, and for all that we may want to do with it, cubic. The second is
# tetragonal, and the third undecided in both questions.
#
# ### The microscope's own stretch
#
# A scan whose two axes differ by 1 % makes of every $a$ = 400 pm a $c - a$ of 4 pm, the tetragonality of BaTiO3. More
# cells do not help, since all of them share it: their errors are *correlated*. What helps is a second domain, with $c$
# along the other axis: the crystal's part changes its sign, the scan's does not.

# %%
truth, per_cell, width = 4.4, 8.0, 10.0
cells = np.geomspace(4, 10_000, 40)
cases = {
    "scan perfect": (0.0, [1]),
    "scan known to 1 %": (4.0, [1]),
    "scan known to 1 %, two domains": (4.0, [1, -1]),
}
fig, ax = plt.subplots()
for name, (scan, senses) in cases.items():
    sense, one = np.array(senses), np.ones((len(senses), len(senses)))
    gain = []
    for n in cells:
        errors = scan**2 * one + per_cell**2 * len(senses) / n * np.eye(len(senses))
        crystal = np.outer(sense, sense)
        # The scan is off by one standard deviation, one way or the other.
        logs = [
            [log_evidence(truth * sense + off, 0.0, v * crystal + errors) for v in (width**2, 0.04)]
            for off in (-scan, scan)
        ]
        gain.append(np.mean([one - other for one, other in logs]))
    style = "--" if len(senses) > 1 else "-"
    ax.semilogx(cells, gain, style, lw=2, label=name)
ax.axhline(3, color="k", ls=":", lw=1)
ax.set(xlabel="cells", ylabel="ln evidence, tetragonal over cubic", ylim=(-3, 12))
ax.set_title("c − a = 4.4 pm, each cell to 8 pm")
ax.legend(frameon=False)

# %% [markdown]
# The dashed line lies on that of a perfect scan. `unit_cell` asks the same of an image of columns. Here is
# a *cubic* crystal through a scan that stretches by 1 %, for one who believes in the scan, and for one who does not:

# %%
BaTiO3 = {"material": "BaTiO3", "rotation": 0.0, "shear": 0.0, **still}
stretched = atomzoo.simulate(
    "perovskite", state="cubic", seed=3, field=5.0, stretch=1.01, precision=0.005, **BaTiO3
)
for prior in ("calibrated", "vague"):
    run = atomzoo.fit("unit_cell", stretched, prior=prior, predictive=0)
    print(f"{prior}: {run.attrs['decided']}")
    for name, factor in zip(run.attrs["symmetries"], run.attrs["log_bayes_factor"], strict=True):
        print(f"    {name:26} ln Bayes factor over cubic {factor:6.1f}")

# %% [markdown]
# The first verdict is as certain as it is wrong, and nothing in the image could have warned us. The second is no
# failure: it is what this image knows.
#
# **Question.** Two domains of one image, turned by 90° against each other, both look longer along x by 1 %. What is it
# that is tetragonal?
#
# ## 5. A crystal that is cubic on average
#
# Above 120 °C BaTiO3 is cubic: so say the Bragg peaks of diffraction, which are of the mean of all cells. Yet titanium
# is in the middle of hardly any of them. It sits off the centre, along one of the eight ⟨111⟩, in each cell along
# another; the mean of the eight is the centre. Seen along an edge of the cube, the eight are four, the ⟨11⟩ of the
# picture. Two crystals, one of them truly cubic:

# %%
sigma = 4.0


def off_centre(state):
    """Displacements (pm) of Ti from the middle of its four Ba, and their noise in each coordinate."""
    atoms = atomzoo.simulate(
        "perovskite",
        state=state,
        seed=4,
        field=6.0,
        off_centre=0.02,
        precision=sigma / 1000,
        **BaTiO3,
    )
    place, bright = 1000 * atoms["position"].values, atoms["intensity"].values
    heavy = bright > bright.max() / 2
    reach, corners = cKDTree(place[heavy]).query(place[~heavy], 4)
    whole = reach.max(1) < 1.2 * np.median(reach)
    middle = place[heavy][corners[whole]].mean(1)
    # One error for titanium and a quarter of the variance for the mean of four barium atoms.
    return place[~heavy][whole] - middle, sigma * np.sqrt(1 + 1 / 4)


crystals = {state: off_centre(state) for state in ("cubic", "eight-site")}
probe = 42.7
profile = np.linspace(-130, 130, 200)
fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.2))
for color, (state, (shift, _)) in zip(("C1", "C0"), crystals.items(), strict=True):
    axes[0].plot(*shift.T, ".", color=color, ms=4)
    axes[1].hist(
        shift[:, 0], np.linspace(-30, 30, 31), histtype="step", density=True, color=color, lw=1.5
    )
    blurred = np.exp(-((profile[:, None] - shift[:, 0]) ** 2) / (2 * probe**2)).mean(1)
    axes[2].plot(profile, blurred / blurred.max(), color=color, label=state)
    # Neighbouring cells share barium atoms; in the mean of all, these count as titanium does.
    mean, by_noise = shift.mean(0), sigma * np.sqrt(2 / len(shift))
    scatter = shift.std() / np.sqrt(len(shift))
    print(
        f"{state:10} {len(shift)} cells, mean ({mean[0]:+.2f}, {mean[1]:+.2f}) pm,"
        f" error by noise {by_noise:.2f}, by scatter {scatter:.2f}"
    )
x = np.linspace(-30, 30, 200)
error = crystals["cubic"][1]
axes[1].plot(x, np.exp(-(x**2) / (2 * error**2)) / (error * np.sqrt(2 * np.pi)), "k:", lw=1)
axes[0].set(xlabel="Δx (pm)", ylabel="Δy (pm)", aspect="equal", title="Each cell")
axes[1].set(xlabel="Δx (pm)", yticks=[], title="and the noise (dotted)")
axes[2].set(xlabel="x (pm)", yticks=[], title="The mean image of Ti")
axes[2].set_ylim(0, 1.35)
axes[2].legend(frameon=False, fontsize=9, loc="upper left")
fig.tight_layout()

# %% [markdown]
# The mean displacement is nothing in both, within twice or so the error that the scatter of the arrows leaves. In the
# mean image titanium is a little broader, by 4 %, as any vibration would make it. The cells themselves leave no doubt,
# *because their noise is known*. The evidence of each story, with its unknown lengths summed out:

# %%
lengths = np.linspace(0.5, 30, 60)
FOUR = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])


def log_normal(rest, variance):
    """ln N(rest; 0, variance · 1) over the last axis."""
    return -0.5 * (rest.shape[-1] * np.log(2 * np.pi * variance) + (rest**2).sum(-1) / variance)


def four_sites(shift, error, length):
    logs = [log_normal(shift - length * way, error**2) for way in FOUR]
    return (logsumexp(logs, axis=0) - np.log(4)).sum()


def stories(shift, error):
    """ln evidence of each story; a length is anything up to 30 pm, a common displacement about 15 pm."""
    alike = np.eye(len(shift)) * error**2 + 15.0**2
    scattered = [log_normal(shift, error**2 + s**2).sum() for s in lengths]
    sites = [four_sites(shift, error, s) for s in lengths]
    return {
        "in the middle": log_normal(shift, error**2).sum(),
        "all displaced alike": sum(log_evidence(axis, 0.0, alike) for axis in shift.T),
        "scattered anyhow": logsumexp(scattered) - np.log(len(lengths)),
        "one of four sites": logsumexp(sites) - np.log(len(lengths)),
    }


told = {state: stories(*crystal) for state, crystal in crystals.items()}
print(f"{'ln evidence against the middle:':32}" + "".join(f"{state:>12}" for state in told))
for name in told["cubic"]:
    row = [found[name] - found["in the middle"] for found in told.values()]
    print(f"{name:32}" + "".join(f"{value:12.1f}" for value in row))

# %% [markdown]
# Mind the second line: among stories that know of noise alone, "all displaced alike" beats "in the middle" in the
# eight-site crystal. Two hundred arrows of 16 pm do not cancel to the last picometre, and a story without them calls
# what is left a polarization. A wrong winner is no wonder where the right story was not entered.
#
# *Scattered anyhow*, a Gaussian of unknown width, is what heat would do, or noise larger than we were told. To see that
# there is *more than noise* takes the width, and to see *four sites* takes the shape. How many cells, at which noise?
# What one cell gives on average is the mean log ratio of two densities, an integral:

# %%
ratios = np.geomspace(0.3, 4, 60)
grid = np.linspace(-8, 8, 2001)
step = grid[1] - grid[0]


def density(x, variance):
    return np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


needed = []
for ratio in ratios:
    # In units of the displacement along x: two places, ±1, and the noise.
    wide = grid * max(1.0, ratio)
    two = 0.5 * (density(wide - 1, ratio**2) + density(wide + 1, ratio**2))
    rivals = density(wide, ratio**2), density(wide, ratio**2 + 1)
    per_axis = [
        np.sum(two * np.log((two + 1e-300) / (other + 1e-300))) * step * max(1.0, ratio)
        for other in rivals
    ]
    needed.append([3 / (2 * gain) for gain in per_axis])
fig, ax = plt.subplots()
ax.loglog(ratios, needed, label=["that it is not in the middle", "that it has four sites"])
ax.set(xlabel="noise / displacement along x", ylabel="cells for odds of 20", ylim=(0.5, 1e6))
ax.set_xticks([0.3, 0.5, 1, 2, 4], ["0.3", "0.5", "1", "2", "4"])
ax.set_title("What it takes to see through a cubic average")
ax.legend(frameon=False)

# %% [markdown]
# Where the noise is twice the displacement, a hundred cells give away that something is displaced, and ten thousand
# what. An average of all these cells gives away neither. (The simulation displaces whole columns. In a crystal a column
# holds many titanium atoms; as far as these are displaced independently of each other, their mean shrinks with the root
# of their number, and the projection of a thick specimen is one more average. Diffuse scattering of BaTiO3 speaks of
# chains of atoms displaced alike *along* the chain; what a column shows is displaced *across* it.)
#
# **Question.** The noise was said to be 4 pm, and is 5 pm. Which of the two curves is to be believed?
#
# ## 6. Two domains that fake a third
#
# Averaging makes symmetry where there is none, and it makes *other* symmetry too. Half of the window has its titanium
# displaced along $[10]$, the other half along $[01]$: two variants of one tetragonal crystal. The mean points along
# $[11]$, and is shorter by $\sqrt 2$. "Orthorhombic", says the average, with a tiny error bar.

# %%
side, length = 14, 15.0
row = np.add.outer(np.arange(side), np.arange(side)).ravel()
# The wall between them runs across [11], where it holds no charge.
left_of_wall = row < side - 1
pattern = length * np.where(left_of_wall[:, None], [1, 0], [0, 1])

fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.4))
ground = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
axes[0].quiver(*ground.T, *pattern.T, left_of_wall, cmap="coolwarm", pivot="mid", width=0.012)
axes[0].set(xlabel="cell", ylabel="cell", aspect="equal", title="The window")
for ax, noise in zip(axes[1:], (4.0, 12.0), strict=True):
    window = pattern + noise * rng.standard_normal(pattern.shape)
    mean, se = window.mean(0), noise / np.sqrt(len(window))
    ax.plot(*window.T, ".", ms=3)
    ax.annotate("", mean, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "r", "lw": 2})
    ax.set(xlabel="Δx (pm)", aspect="equal", title=f"σ = {noise:g} pm; red: the mean")
    print(f"σ = {noise:2g} pm: mean ({mean[0]:.1f}, {mean[1]:.1f}) ± {se:.1f} pm")
axes[1].set_ylabel("Δy (pm)")
fig.tight_layout()

# %% [markdown]
# Three stories of such a window: all cells along one of the ⟨11⟩; a mixture of two tetragonal variants, no matter which
# cell has which; and two domains with a wall between them. The last uses *where* the cells are.

# %%
amplitudes = np.linspace(1, 40, 40)[:, None, None]
# Half of a normal distribution of width 15 pm.
log_prior = -0.5 * (amplitudes[:, 0, 0] / 15.0) ** 2
log_prior -= logsumexp(log_prior)
fractions = np.array([0.1, 0.3, 0.5, 0.7, 0.9])[:, None, None, None]


def window_stories(window, noise):
    """ln evidence of one variant along <11>, of a mixture along <10> and <01>, and of two domains with a wall."""
    along = {}
    for name, ways in {"11": FOUR / np.sqrt(2), "10": FOUR * [1, 0], "01": FOUR * [0, 1]}.items():
        ideal = amplitudes[..., None] * ways[None, :, None]
        along[name] = log_normal(window - ideal, noise**2)

    def total(logs):
        """Sum out the amplitude (last but one axis) and the signs and all else with even odds."""
        even = logsumexp(logs + log_prior[:, None], axis=(-2, -1)) - np.log(4)
        return logsumexp(even) - np.log(np.size(even))

    first, second = along["10"], along["01"]
    mixed = np.logaddexp(first + np.log(fractions), second + np.log(1 - fractions)).sum(-1)
    below = row < np.arange(1, row.max() + 1)[:, None]
    walls = [
        np.einsum("asn,wn->was", one, 1.0 * below) + np.einsum("asn,wn->was", other, 1.0 * ~below)
        for one, other in ((first, second), (second, first))
    ]
    return total(along["11"].sum(-1)), total(mixed), total(np.concatenate(walls))


noises = length * np.geomspace(0.2, 5, 12)
gains = []
for noise in noises:
    windows = pattern + noise * rng.standard_normal((10, *pattern.shape))
    found = np.array([window_stories(window, noise) for window in windows])
    gains.append(found[:, 1:] - found[:, :1])
low, middle, high = np.quantile(gains, [0.1, 0.5, 0.9], axis=1)

fig, ax = plt.subplots()
ax.axhspan(-3, 3, color="0.9", zorder=0)
for k, name in enumerate(("two variants, anywhere", "two domains and a wall")):
    ax.fill_between(noises / length, low[:, k], high[:, k], alpha=0.3)
    ax.semilogx(noises / length, middle[:, k], label=name)
ax.text(0.21, -1.5, "cannot tell", color="0.4")
ax.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
ax.set(xlabel="noise / displacement", ylabel="ln evidence over one variant", ylim=(-10, 60))
ax.set_title(f"{side * side} cells, half of each variant")
ax.legend(frameon=False)

# %% [markdown]
# Once the clouds overlap the mixture has lost, and then "cannot tell" is the truth. A wall is seen at about twice the
# noise, because cells that lie together may be taken together: *spatial resolution is evidence*. The average of the
# window has neither, at no noise at all.
#
# **Question.** The window is averaged in four blocks of 7 × 7 cells instead. What do the blocks show at σ = 12 pm?
#
# ### And through the thickness?
#
# If the two variants lie one above the other, every single column shows the mean. No column is displaced along
# $[10]$ any more, and no statistics over columns helps. What is left is the *shape*: the column is longer along
# $[1\bar1]$, by little.

# %%
across = length / np.sqrt(2)
ratio = np.sqrt(1 + across**2 / probe**2)
electrons = (3 / np.log(ratio)) ** 2
print(f"longer by {100 * (ratio - 1):.1f} %; for three standard errors {electrons:.0f} electrons")


# %% [markdown]
# That is without background, neighbours and astigmatism, of which the last makes all columns longer along one
# direction. Tilting the specimen, or looking along another axis, is the better experiment. Where you cannot, the
# sentence to write is: "the projected structure is orthorhombic; these data cannot tell one variant from two".
#
# ## Further reading
#
# - On symmetry with noise: H. Zabrodsky, S. Peleg, D. Avnir, *Symmetry as a continuous feature*, IEEE Trans. Pattern
#   Analysis and Machine Intelligence 17, 1154 (1995), and why its distances of a group and of its subgroup cannot be
#   compared as they are: K. Kanatani, *Comments on "Symmetry as a continuous feature"*, ibid. 19, 246 (1997).
# - On evidence and Occam's razor: D. MacKay, *Information Theory, Inference, and Learning Algorithms*, Cambridge
#   (2003), chapter 28. On vague priors that make the simpler model win: D. Lindley, *A statistical paradox*, Biometrika
#   44, 187 (1957).
# - On practical equivalence: J. Kruschke, *Rejecting or accepting parameter values in Bayesian estimation*, Advances in
#   Methods and Practices in Psychological Science 1, 270 (2018).
# - On chains in BaTiO3: R. Comès, M. Lambert, A. Guinier, *The chain structure of BaTiO3 and KNbO3*, Solid State
#   Communications 6, 715 (1968). On nanodomains that look monoclinic together: Y. Jin, Y. Wang, A. Khachaturyan, J. Li,
#   D. Viehland, *Conformal miniaturization of domains with low domain-wall energy*, Physical Review Letters 91, 197601
#   (2003).
#
# ## Exercises
#
# 1. In section 4, how wide must $w$ be for a difference of four standard errors no longer to give odds of 10 (take
#    $\rho = 0$)?
# 2. Use section 1 for a glass, $\tau$ = 40 pm. How large must a stretch be, at σ = 3 pm, for D1 to win over D3? How
#    large was it with $\tau$ = 10 pm?
# 3. Fit `unit_cell` to a tetragonal crystal (`state="polar"`, `walls="none"`, `stretch=1.0`) with both priors. What
#    differs from the cubic one through a stretching scan?
# 4. In section 6, let the variants alternate (`left_of_wall = row % 2 == 0`). Which story wins at σ = 6 pm? Why does
#    "two domains and a wall" lose even against one variant?
#
# <details><summary>Answers</summary>
#
# Questions:
#
# - *Section 1.* D3, with 0.8 against 0.2. The stretch is worth less than one in log evidence, and D1 pays about
#   $\ln(\tau/\sigma)$ for each of its two further freedoms, besides sharing its chance among three mirror
#   lines: the line that fits best was chosen after the data were seen.
# - *Section 2.* One with the scan turned by 90°. The scan's shear stays with the frame, the crystal's turns with the
#   sheet.
# - *Section 3.* D1, with its mirror line through the odd one, and C1. All other operations put an atom of one species
#   where the other is.
# - *Section 4.* The scan. The crystal's $c$ would have turned with the domain.
# - *Section 5.* The second. Its rival has a free width, which takes up what noise there is. The first takes the excess
#   variance, 25 − 16 = 9 pm², for displacements of 3 pm.
# - *Section 6.* Two blocks lie in one domain each and show $[10]$ and $[01]$, to 1.7 pm in each coordinate. The wall
#   runs through the other two, and they show something like $[11]$.
#
# Exercises:
#
# 1. 298 standard errors. The odds are $e^{z^2/2}/(w/\sigma)$ for large $w$, and $e^8$ is 2981.
# 2. 15.6 pm; 11.7 pm with $\tau$ = 10 pm. A wider prior asks for more.
# 3. Nothing, but the axis: by 1 % it is the same image. "Tetragonal" with a Bayes factor of about $e^{50}$ under
#    `calibrated`, "cannot decide" under `vague`.
# 4. The mixture, by about 180, as for two halves: it does not care where the cells are. With a wall, half of the cells
#    are on the wrong side wherever it runs, and are missed by more than the one variant, halfway between, misses all of
#    them.
#
# </details>
