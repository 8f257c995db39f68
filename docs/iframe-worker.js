// Browsers start no Worker for a page that was opened from the disk, and the site's search is one. For such pages alone
// the search runs in a hidden frame instead, which speaks to the page as a Worker does.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const script = frame.contentDocument.createElement("script");
      script.src = url;
      // What the search answers goes to the page, not to the frame itself.
      frame.contentWindow.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((resolve) => script.addEventListener("load", () => resolve(frame.contentWindow)));
      frame.contentDocument.head.append(script);
    }

    async postMessage(data) {
      const inside = await this.ready;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
  };
}
