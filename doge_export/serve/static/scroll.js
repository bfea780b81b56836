// A place that stays at its end while text comes, until its reader goes elsewhere.

const NEAR = 40; // pixels from the end that still are the end

/** Returns {follow, jump}: go on to the end if the reader is there, and go there in any case. */
export function follower(place, button) {
  let following = true, last = 0;

  const atEnd = () => place.scrollHeight - place.scrollTop - place.clientHeight < NEAR;
  const show = () => { button.hidden = following || atEnd(); };
  const jump = () => {
    following = true;
    place.scrollTop = place.scrollHeight;
    show();
  };

  // Text that comes between our scrolling and its event moves the end, too: only who scrolls up has left.
  place.addEventListener("scroll", () => {
    if (atEnd()) following = true;
    else if (place.scrollTop < last) following = false;
    last = place.scrollTop;
    show();
  }, { passive: true });
  new ResizeObserver(() => { if (following) jump(); }).observe(place);
  button.addEventListener("click", jump);

  return { follow() { if (following) jump(); else show(); }, jump };
}
