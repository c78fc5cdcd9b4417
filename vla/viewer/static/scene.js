// A small renderer of the primitives that MuJoCo's scenes are made of: boxes, spheres, capsules, cylinders, ellipsoids
// and planes, with one light and its shadow on the table. z is up, metres. Matrices are column-major, quaternions w x y z.
"use strict";

const HOME = { azimuth: -0.62, elevation: 0.45, distance: 1.5, target: [0.45, 0, 0.16] };
const SHADERS = {
  vertex: `attribute vec3 position, normal; uniform mat4 model, camera; uniform mat3 turn; varying vec3 n, p;
    void main() { vec4 w = model * vec4(position, 1.0); n = turn * normal; p = w.xyz; gl_Position = camera * w; }`,
  fragment: `precision mediump float; uniform vec4 colour; uniform vec3 light, eye; uniform float flat_; varying vec3 n, p;
    void main() {
      vec3 m = normalize(n), v = normalize(eye - p);
      float sun = max(dot(m, light), 0.0), sky = 0.5 + 0.5 * m.z, rim = pow(1.0 - max(dot(m, v), 0.0), 3.0);
      float shine = pow(max(dot(m, normalize(light + v)), 0.0), 40.0) * 0.18;
      vec3 lit = colour.rgb * (0.30 + 0.28 * sky + 0.55 * sun) + shine + 0.05 * rim;
      gl_FragColor = vec4(mix(lit, colour.rgb, flat_), colour.a);
    }`,
};

function boxMesh() {
  const points = [], normals = [];
  for (let axis = 0; axis < 3; axis++) for (const sign of [-1, 1]) {
    const [u, v] = [(axis + 1) % 3, (axis + 2) % 3];
    const corner = (a, b) => { const c = [0, 0, 0]; c[axis] = sign; c[u] = a; c[v] = b; return c; };
    const quad = [[-1, -1], [1, -1], [1, 1], [-1, -1], [1, 1], [-1, 1]];
    for (const [a, b] of quad) { points.push(...corner(a, b)); const n = [0, 0, 0]; n[axis] = sign; normals.push(...n); }
  }
  return { points, normals };
}

function sphereMesh(rings = 14, around = 24) {
  const points = [], normals = [];
  const at = (i, j) => {
    const a = Math.PI * i / rings, b = 2 * Math.PI * j / around;
    return [Math.sin(a) * Math.cos(b), Math.sin(a) * Math.sin(b), Math.cos(a)];
  };
  for (let i = 0; i < rings; i++) for (let j = 0; j < around; j++)
    for (const [di, dj] of [[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]]) {
      const q = at(i + di, j + dj); points.push(...q); normals.push(...q);
    }
  return { points, normals };
}

function cylinderMesh(around = 28) {
  const points = [], normals = [];
  for (let j = 0; j < around; j++) {
    const [a, b] = [2 * Math.PI * j / around, 2 * Math.PI * (j + 1) / around];
    const [ca, sa, cb, sb] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)];
    for (const [c, s, z] of [[ca, sa, -1], [cb, sb, -1], [cb, sb, 1], [ca, sa, -1], [cb, sb, 1], [ca, sa, 1]]) {
      points.push(c, s, z); normals.push(c, s, 0);
    }
    for (const z of [-1, 1]) { points.push(0, 0, z, ca, sa, z, cb, sb, z); normals.push(0, 0, z, 0, 0, z, 0, 0, z); }
  }
  return { points, normals };
}

function rotation([w, x, y, z]) {
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
    2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x),
    2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y),
  ];
}
const turned = (r, v) => [0, 1, 2].map(i => r[i] * v[0] + r[3 + i] * v[1] + r[6 + i] * v[2]);
const times3 = (a, b) => [0, 1, 2].flatMap(c => turned(a, b.slice(3 * c, 3 * c + 3)));
function times4(a, b) {
  const out = new Float32Array(16);
  for (let c = 0; c < 4; c++) for (let r = 0; r < 4; r++)
    for (let k = 0; k < 4; k++) out[4 * c + r] += a[4 * k + r] * b[4 * c + k];
  return out;
}
const minus = (a, b) => a.map((v, i) => v - b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = v => { const l = Math.hypot(...v) || 1; return v.map(x => x / l); };

class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.eye = { ...HOME };
    this.gl = canvas.getContext("webgl", { alpha: false, antialias: true, stencil: true, preserveDrawingBuffer: true });
    if (!this.gl) return;
    this.light = unit([0.35, 0.3, 0.9]);
    this.program = this.compile();
    this.meshes = { box: this.upload(boxMesh()), sphere: this.upload(sphereMesh()), cylinder: this.upload(cylinderMesh()) };
    this.listen();
  }
  get works() { return Boolean(this.gl); }

  compile() {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, SHADERS.vertex], [gl.FRAGMENT_SHADER, SHADERS.fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "position"); gl.bindAttribLocation(program, 1, "normal");
    gl.linkProgram(program); gl.useProgram(program);
    this.at = {};
    for (const name of ["model", "camera", "turn", "colour", "light", "eye", "flat_"])
      this.at[name] = gl.getUniformLocation(program, name);
    return program;
  }
  upload({ points, normals }) {
    const gl = this.gl, buffers = [points, normals].map(values => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(values), gl.STATIC_DRAW);
      return buffer;
    });
    return { buffers, count: points.length / 3 };
  }

  listen() {
    const canvas = this.canvas, held = {};
    canvas.addEventListener("pointerdown", e => { held.x = e.clientX; held.y = e.clientY; held.pan = e.shiftKey || e.button === 2; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointerup", () => { held.x = undefined; });
    canvas.addEventListener("pointermove", e => {
      if (held.x === undefined) return;
      const dx = e.clientX - held.x, dy = e.clientY - held.y, eye = this.eye;
      held.x = e.clientX; held.y = e.clientY;
      if (held.pan) this.pan(dx, dy);
      else { eye.azimuth -= dx * 0.008; eye.elevation = Math.min(1.55, Math.max(-0.1, eye.elevation + dy * 0.008)); }
      this.redraw();
    });
    canvas.addEventListener("wheel", e => { e.preventDefault(); this.eye.distance = Math.min(4, Math.max(0.15, this.eye.distance * Math.exp(e.deltaY * 0.001))); this.redraw(); }, { passive: false });
    canvas.addEventListener("contextmenu", e => e.preventDefault());
    canvas.addEventListener("dblclick", () => { Object.assign(this.eye, HOME); this.redraw(); });
  }
  pan(dx, dy) {
    const { azimuth, distance } = this.eye, scale = distance * 0.0012;
    const right = [-Math.sin(azimuth), Math.cos(azimuth), 0];
    this.eye.target = this.eye.target.map((v, i) => v - right[i] * dx * scale + (i === 2 ? dy * scale : 0));
  }

  load(shapes, poses, numBodies) { Object.assign(this, { shapes, poses, numBodies }); }

  camera() {
    const { azimuth, elevation, distance, target } = this.eye;
    const back = [Math.cos(elevation) * Math.cos(azimuth), Math.cos(elevation) * Math.sin(azimuth), Math.sin(elevation)];
    const from = target.map((v, i) => v + distance * back[i]);
    const right = unit(cross([0, 0, 1], back)), up = cross(back, right);
    const view = new Float32Array([right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
      -dot(right, from), -dot(up, from), -dot(back, from), 1]);
    const f = 1 / Math.tan(0.33), aspect = this.canvas.width / this.canvas.height, [near, far] = [0.02, 12];
    const lens = new Float32Array([f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0]);
    return { matrix: times4(lens, view), from };
  }

  redraw() { if (this.works && this.last) this.draw(...this.last); }

  // Draw moment `t`; `paths` are {points, colour, radius} polylines in the scene.
  draw(t, paths = [], ground = [0.95, 0.95, 0.94]) {
    if (!this.works || !this.shapes) return;
    this.last = [t, paths, ground];
    const gl = this.gl, ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [Math.round(this.canvas.clientWidth * ratio), Math.round(this.canvas.clientHeight * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) { this.canvas.width = width; this.canvas.height = height; }
    gl.viewport(0, 0, width, height);
    gl.clearColor(...ground, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT | gl.STENCIL_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST); gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    const { matrix, from } = this.camera();
    gl.uniformMatrix4fv(this.at.camera, false, matrix); gl.uniform3fv(this.at.light, this.light); gl.uniform3fv(this.at.eye, from);
    const parts = this.parts(t);
    gl.uniform1f(this.at.flat_, 0);
    for (const part of parts) this.put(part);
    this.shadows(parts.filter(part => part.casts));
    gl.uniform1f(this.at.flat_, 0.35);
    for (const path of paths) for (const part of this.tube(path)) this.put(part);
  }

  // Every shape as meshes with their poses: rotation (9), position (3), scale (3).
  parts(t) {
    const parts = [], stride = this.numBodies * 7;
    for (const shape of this.shapes) {
      if (shape.kind === "plane" && shape.position[2] < -0.05) continue;  // the floor: the page is background enough
      const at = t * stride + shape.body * 7, pose = this.poses.subarray(at, at + 7);
      const body = rotation(pose.subarray(3, 7));
      const r = times3(body, rotation(shape.quaternion)), offset = turned(body, shape.position);
      const position = [0, 1, 2].map(i => pose[i] + offset[i]), [a, b, c] = shape.size, colour = shape.rgba;
      const add = (mesh, scale, where = position, casts = true) => parts.push({ mesh, r, position: where, scale, colour, casts });
      const along = z => { const d = turned(r, [0, 0, z]); return position.map((v, i) => v + d[i]); };
      if (shape.kind === "box") add("box", [a, b, c]);
      else if (shape.kind === "sphere") add("sphere", [a, a, a]);
      else if (shape.kind === "ellipsoid") add("sphere", [a, b, c]);
      else if (shape.kind === "cylinder") add("cylinder", [a, a, b]);
      else if (shape.kind === "plane") add("box", [a || 5, b || 5, 0.0008], along(-0.0008), false);
      else if (shape.kind === "capsule") {
        add("cylinder", [a, a, b]); add("sphere", [a, a, a], along(b)); add("sphere", [a, a, a], along(-b));
      }
    }
    return parts;
  }

  put({ mesh, r, position, scale, colour }, flatten = null) {
    const gl = this.gl, { buffers, count } = this.meshes[mesh];
    let model = new Float32Array([
      ...[0, 1, 2].map(i => r[i] * scale[0]), 0, ...[3, 4, 5].map(i => r[i] * scale[1]), 0,
      ...[6, 7, 8].map(i => r[i] * scale[2]), 0, ...position, 1]);
    if (flatten) model = times4(flatten, model);
    const turn = new Float32Array([0, 1, 2].flatMap(c => [0, 1, 2].map(i => r[3 * c + i] / scale[c])));
    gl.uniformMatrix4fv(this.at.model, false, model); gl.uniformMatrix3fv(this.at.turn, false, turn);
    gl.uniform4fv(this.at.colour, colour);
    buffers.forEach((buffer, i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.enableVertexAttribArray(i); gl.vertexAttribPointer(i, 3, gl.FLOAT, false, 0, 0);
    });
    gl.drawArrays(gl.TRIANGLES, 0, count);
  }

  // What stands above the table, flattened onto it along the light; the stencil darkens every point once.
  shadows(parts) {
    const gl = this.gl, [x, y, z] = this.light, flatten = new Float32Array([1, 0, 0, 0, 0, 1, 0, 0, -x / z, -y / z, 0, 0, 0, 0, 0.0031, 1]);
    gl.enable(gl.STENCIL_TEST); gl.stencilFunc(gl.EQUAL, 0, 255); gl.stencilOp(gl.KEEP, gl.KEEP, gl.INCR);
    gl.depthMask(false); gl.uniform1f(this.at.flat_, 1);
    for (const part of parts) if (part.position[2] > -0.05) this.put({ ...part, colour: [0.05, 0.06, 0.09, 0.2] }, flatten);
    gl.depthMask(true); gl.disable(gl.STENCIL_TEST);
  }

  tube({ points, colour, radius }) {
    const parts = [];
    points.forEach((p, i) => {
      parts.push({ mesh: "sphere", r: [1, 0, 0, 0, 1, 0, 0, 0, 1], position: p, scale: [radius * 1.5, radius * 1.5, radius * 1.5], colour });
      if (i === 0) return;
      const from = points[i - 1], d = minus(p, from), length = Math.hypot(...d);
      if (length < 1e-6) return;
      const w = d.map(v => v / length), u = unit(cross(Math.abs(w[2]) < 0.9 ? [0, 0, 1] : [1, 0, 0], w)), v = cross(w, u);
      parts.push({ mesh: "cylinder", r: [...u, ...v, ...w], position: p.map((q, k) => (q + from[k]) / 2), scale: [radius, radius, length / 2], colour });
    });
    return parts;
  }
}
