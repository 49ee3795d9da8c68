"use strict";
// "Break it": four digits drawn by the right lines and with bugs, and a quiz.

const BROKEN = 4; // digits in a row
const SHORT_CHAIN = 10; // steps of DDPM: in many steps some of the bugs do not show
const OPTIONS = 4; // of a question

const quiz = { bug: null, right: 0, asked: 0 };
let healthyFor; // what the right lines have drawn

function bugsOn() {
  return wish.bugs ?? ["time"];
}

function explanation(bug) {
  return document.querySelector(`#explained [data-bug="${bug}"]`);
}

// Its name as an element, since some have formulas.
function nameOf(bug) {
  const name = document.createElement("span");
  name.append(...explanation(bug).querySelector("h4").cloneNode(true).childNodes);
  return name;
}

function setUpBugs() {
  for (const bug of Object.keys(BUGS)) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "checkbox", value: bug });
    input.setAttribute("role", "switch");
    input.onchange = switched;
    label.append(input, nameOf(bug));
    $("bugs").append(label);
  }
  showBugs();
  $("other-digits").onclick = () => advance("break", BROKEN);
  $("quiz-start").onclick = () => {
    $("quiz").hidden = false;
    $("quiz-start").hidden = true;
    nextQuestion();
  };
  $("quiz-next").onclick = nextQuestion;
}

function switched() {
  const on = [...document.querySelectorAll("#bugs :checked")].map(({ value }) => value);
  wish.bugs = on;
  drawBench("break");
  writeSoon();
}

function showBugs() {
  const on = bugsOn();
  for (const input of document.querySelectorAll("#bugs input")) {
    input.checked = on.includes(input.value);
    explanation(input.value).hidden = !input.checked;
  }
  $("no-bug").hidden = on.length > 0;
}

function drawBugs() {
  showBugs();
  const bugs = bugsOn(), images = imagesOf("break", BROKEN), task = bugTask(bugs, images);
  for (const id of ["healthy", "broken"]) fillRow($(id), BROKEN);
  const wanted = JSON.stringify([wish.seed, images]);
  if (healthyFor !== wanted) ask("healthy", images, { ...task, bugs: [] });
  healthyFor = wanted;
  ask("broken", images, task);
}

// Ancestral sampling in few steps, with each label in turn.
function bugTask(bugs, images) {
  const steps = Math.min(SHORT_CHAIN, facts.T);
  const labels = labelsOf({ label: EACH }, images, facts.classes);
  return { sampler: "ddpm", steps, eta: 0, guidance: 1, labels, bugs };
}

function shuffled(all) {
  const result = [...all];
  for (let k = result.length - 1; k > 0; k--) {
    const other = Math.floor((k + 1) * Math.random());
    [result[k], result[other]] = [result[other], result[k]];
  }
  return result;
}

function nextQuestion() {
  const others = shuffled(Object.keys(BUGS).filter((bug) => bug !== quiz.bug));
  quiz.bug = others[0]; // never the same twice in a row
  quiz.seed = Math.floor(2 ** 32 * Math.random());
  const wrong = shuffled(Object.keys(BUGS).filter((bug) => bug !== quiz.bug));
  const options = shuffled([quiz.bug, ...wrong.slice(1 - OPTIONS)]);
  for (const id of ["question", "answer"]) fillRow($(id), BROKEN);
  $("choices").replaceChildren(...options.map(choiceButton));
  $("verdict").replaceChildren();
  $("quiz-next").hidden = true;
  $("solution").classList.add("unknown");
  askQuestion("question", [quiz.bug]);
  showScore();
}

function choiceButton(bug) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", value: bug, onclick: () => judge(bug) });
  button.append(nameOf(bug));
  return button;
}

function askQuestion(lane, bugs) {
  const images = Array.from({ length: BROKEN }, (_, k) => quiz.seed % 10 + k);
  ask(lane, images, { ...bugTask(bugs, images), seed: quiz.seed });
}

function judge(bug) {
  const isRight = bug === quiz.bug;
  quiz.asked++;
  if (isRight) quiz.right++;
  for (const button of document.querySelectorAll("#choices button")) {
    button.disabled = true;
    if (button.value === quiz.bug) button.classList.add("correct");
    if (button.value === bug) button.setAttribute("aria-pressed", "true");
  }
  const verdict = document.createElement("p"), why = explanation(quiz.bug).cloneNode(true);
  verdict.textContent = isRight ? "Right. It is:" : "No. It is:";
  why.hidden = false;
  $("verdict").replaceChildren(verdict, why);
  $("solution").classList.remove("unknown");
  askQuestion("answer", []);
  showScore();
  $("quiz-next").hidden = false;
  $("quiz-next").focus({ preventScroll: true });
}

function showScore() {
  $("score").textContent = quiz.asked ? `${quiz.right} of ${quiz.asked} right` : "";
}

function endQuiz() {
  healthyFor = null; // it may have been cancelled
  $("quiz").hidden = true;
  $("quiz-start").hidden = false;
}

const BUG_BENCH = {
  setUp: setUpBugs,
  draw: drawBugs,
  close: endQuiz,
  dependsOn: bugsOn,
  show: Object.fromEntries(["healthy", "broken", "question", "answer"].map((lane) => {
    return [lane, ({ t, x0 }) => paintRow($(lane), x0, t)];
  })),
};
