"""Pictures of every environment, from one of two back ends that draw the same picture.

`egl` is MuJoCo's classic OpenGL renderer without a display, on a software or GPU driver. `warp` is
mujoco-warp's ray tracer: it needs no system library and runs on the CPU or on a CUDA device. Both
read the live state of a `mujoco.batch.Batch` and its expanded (per-environment) model fields, so
colours, sizes, cameras and lights may differ between environments.

Neither draws shadows, highlights, reflections, sky or (unless asked) textures. With them a 96 px
frame takes 50 to 100 times as long on a CPU, and the two pictures would differ. Both shade
directional lights alike. They differ on positional ones over large faces, which the classic
renderer shades at their corners.
"""
