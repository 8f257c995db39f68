// What the parts of the page share.

export const page = {
  model: null, // what GET /v1/model said
  key: "",
  picture: null, // what was chosen: { file, signal, seen, original }; `seen` is null where this browser cannot decode it
};
